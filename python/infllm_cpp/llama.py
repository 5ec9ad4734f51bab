"""The `Llama` class: a GGUF model with a context, plain or with the InfLLM memory."""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast, get_args, overload

import numpy as np
import numpy.typing as npt

from . import _core, chat
from ._devices import choose_devices
from ._sizes import kv_bytes_per_token
from ._text import TextStream
from ._threads import default_n_threads
from .config import InfLLMConfig, InfLLMStats
from .models import check_gguf
from .types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatMessage,
    Completion,
    CompletionChunk,
    FinishReason,
    Timings,
    Usage,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

KVType = Literal["f16", "q8_0", "q4_0"]
ProgressCallback = Callable[[int, int], object]
TraceCallback = Callable[[_core.TraceEvent], object]

_INFLLM_DEFAULT = InfLLMConfig()
_N_UBATCH = 512
_PENALTY_LAST_N = 64  # llama-cpp-python's last_n_tokens_size


class CompletionOptions(TypedDict, total=False):
    """Keyword arguments of both kinds of completion, explained at `Llama.create_completion`."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    stop: str | Sequence[str] | None
    seed: int | None
    progress: ProgressCallback | None


@dataclass
class _Piece:
    """New text; with the last piece comes how it ended."""

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None


class Llama:
    """A GGUF model and a context of one sequence.

    Names and meaning of parameters and methods follow llama-cpp-python where it has them.

    Parameters
    ----------
    model_path : str or os.PathLike
        A GGUF file.
    n_ctx : int
        Tokens that the context can hold. 0: the training length. With the method the memory for them is
        taken as they come.
    n_batch : int
        Tokens given to ``llama_decode`` at once: progress is reported this often.
    n_ubatch : int or None
        Tokens computed at once. ``None``: 512, or less where `n_batch` or the local window is smaller.
    n_threads, n_threads_batch : int or None
        Threads for single tokens and for prompts. ``None``: the physical cores, and `n_threads`.
    n_gpu_layers : int or None
        Layers to keep on devices, from the last one on; -1: all. With them go their resident buffers.
        ``None``: all if `devices` or `rpc_servers` are given, else 0.
    devices : sequence of str or None
        GPUs of this machine to use, by name, such as ``["CUDA0"]``; ``None``: all.
    rpc_servers : sequence of str
        Addresses ``host:port`` of ggml-rpc-server; their devices are used first. An RPC server must be of the
        same llama.cpp release, and be trusted: nothing is encrypted.
    tensor_split : sequence of float or None
        Share of the layers for each device; ``None``: by free memory.
    infllm : InfLLMConfig or None
        The InfLLM memory; ``None``: plain llama.cpp. This argument alone decides: the environment variable
        ``LLAMA_INFLLM``, which is for other programs, is ignored.
    seed : int
        Seed of the sampler where a call gives none; 0xFFFFFFFF: a random one.
    type_k, type_v : {"f16", "q8_0", "q4_0"}
        Types of K and V.
    use_mmap, use_mlock : bool
        Map the file into memory; keep it from being swapped out.
    offload_kqv : bool
        Keep K and V on the device of their layer.
    flash_attn : bool or None
        Flash attention; ``None``: where the device has it. The InfLLM memory needs it.
    chat_template : str or None
        Jinja template to use instead of the one in the GGUF.
    verbose : bool
        Print llama.cpp's log to stderr. The log is one for the process: the last `Llama` made decides.
    progress : callable or None
        ``progress(n_done, n_total)`` after every batch of a prompt, tokens.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        When `model_path` cannot be read.
    ValueError
        When the file is not a GGUF model or is damaged, or when parameters are out of range or contradict
        each other.
    RuntimeError
        When `n_gpu_layers` is not 0 and there is no GPU, or the context cannot be made.
    ConnectionError
        When an RPC server cannot be reached.
    DeviceLostError
        A RuntimeError: an RPC server stopped to answer, now or in any later call. Such an object can be
        closed, nothing else.
    MemoryError
        When there is not enough memory for the context.

    Notes
    -----
    Thread safety: one call computes at a time, others wait for it. `stats` and `interrupt` never wait. A call
    from within a callback of the same object raises RuntimeError.

    Ctrl-C stops a computation within a fraction of a second. What was stored until then stays stored, so
    that the same prompt given again continues where it stopped.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_ctx: int = 0,
        n_batch: int = 512,
        n_ubatch: int | None = None,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        n_gpu_layers: int | None = None,
        devices: Sequence[str] | None = None,
        rpc_servers: Sequence[str] = (),
        tensor_split: Sequence[float] | None = None,
        infllm: InfLLMConfig | None = _INFLLM_DEFAULT,
        seed: int = _core.DEFAULT_SEED,
        type_k: KVType = "f16",
        type_v: KVType = "f16",
        use_mmap: bool = True,
        use_mlock: bool = False,
        offload_kqv: bool = True,
        flash_attn: bool | None = None,
        chat_template: str | None = None,
        verbose: bool = False,
        progress: ProgressCallback | None = None,
    ) -> None:
        _check_range("n_ctx", n_ctx, 0, 2**31 - 1)
        _check_range("n_batch", n_batch, 1, 2**31 - 1)
        _check_range("n_ubatch", n_ubatch, 1, 2**31 - 1)
        _check_range("n_threads", n_threads, 1, 512)
        _check_range("n_threads_batch", n_threads_batch, 1, 512)
        _check_range("n_gpu_layers", n_gpu_layers, -1, 2**31 - 1)
        _check_range("seed", seed, 0, 2**32 - 1)
        check_kv_type("type_k", type_k)
        check_kv_type("type_v", type_v)
        for share in tensor_split or ():
            _check_range("tensor_split", share, 0, 1e6)
        if infllm is not None and not isinstance(infllm, InfLLMConfig):
            raise TypeError(f"infllm = {infllm!r} is neither an InfLLMConfig nor None")
        n_gpu_layers, device_names = choose_devices(n_gpu_layers, devices, rpc_servers)

        self.model_path = os.fspath(model_path)
        self.verbose = verbose
        self.progress = progress
        self.chat_template = chat_template

        self._lock = threading.Lock()
        self._owner: int | None = None  # thread that holds the lock
        self._version = 0  # of the stored tokens: a stream must not go on when another call changed them
        self._tokens: list[int] = []  # stored tokens; the memory is right where the two disagree, see _sync
        self._has_logits = False
        self._seed = seed
        self._kv_types = (type_k, type_v)
        self._trace: TraceCallback | None = None
        self._model_or_none: _core.Model | None = None
        self._ctx_or_none: _core.Context | None = None

        _core.set_verbose(verbose)
        model = self._model_or_none = load_model(
            model_path,
            n_gpu_layers=n_gpu_layers,
            devices=device_names,
            tensor_split=tensor_split,
            use_mmap=use_mmap,
            use_mlock=use_mlock,
        )
        if not model.has_decoder() or model.has_encoder():
            raise ValueError(f"{self.model_path} is not a decoder-only model: it cannot generate text here")

        n_ctx = n_ctx or model.n_ctx_train()
        params, n_ubatch = resolve_infllm(model, infllm, n_ctx, n_batch, n_ubatch, type_k, type_v)
        n_threads = n_threads or default_n_threads()

        with _without_env("LLAMA_INFLLM"):
            try:
                self._ctx_or_none = _core.Context(
                    model,
                    n_ctx,
                    n_batch,
                    n_ubatch,
                    n_threads,
                    n_threads_batch or n_threads,
                    type_k,
                    type_v,
                    offload_kqv,
                    flash_attn,
                    params,
                )
            except _core.DeviceLostError:
                raise
            except RuntimeError as err:
                reason = _reason(str(err))
                if "alloc" in reason:
                    raise MemoryError(f"n_ctx = {n_ctx} needs more memory than there is ({reason})") from None
                raise RuntimeError(f"no context of n_ctx = {n_ctx} can be made: {reason}") from None

        # llama.cpp rounds n_ctx up, and n_batch down
        self._n_ctx = n_ctx
        self._n_batch = self._ctx.n_batch()

    # -- the object --------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the model and the context. May be called twice; waits for a call that computes."""
        with self._lock:
            self._ctx_or_none = None
            self._model_or_none = None

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def _model(self) -> _core.Model:
        if self._model_or_none is None:
            raise RuntimeError("this Llama is closed: make a new one")
        return self._model_or_none

    @property
    def _ctx(self) -> _core.Context:
        if self._ctx_or_none is None:
            raise RuntimeError("this Llama is closed: make a new one")
        return self._ctx_or_none

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Hold the context: no other call computes meanwhile."""
        if self._owner == threading.get_ident():
            raise RuntimeError(
                "a callback of this Llama must not call it: only stats() and interrupt() are allowed"
            )
        with self._lock:
            self._owner = threading.get_ident()
            try:
                self._sync()
                yield
            finally:
                self._owner = None

    # -- the model ---------------------------------------------------------------------------------

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the GGUF, without arrays."""
        return self._model.meta()

    @property
    def infllm(self) -> InfLLMConfig | None:
        """Parameters of the InfLLM memory with the automatic values filled in; None without it."""
        params = self._ctx.infllm_params()
        return None if params is None else InfLLMConfig._from_params(params)

    def n_ctx(self) -> int:
        """Tokens that the context can hold."""
        return self._n_ctx

    def n_ctx_train(self) -> int:
        """Tokens that the model was trained for."""
        return self._model.n_ctx_train()

    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self._model.n_vocab()

    def n_embd(self) -> int:
        """Size of an embedding."""
        return self._model.n_embd()

    def kv_bytes_per_token(self) -> float:
        """Bytes of K and V of one token in all layers."""
        return kv_bytes_per_token(self._model, *self._kv_types)

    def token_bos(self) -> int:
        """Token that begins a text; -1 if there is none."""
        return self._model.token_bos()

    def token_eos(self) -> int:
        """Token that ends a text; -1 if there is none."""
        return self._model.token_eos()

    def token_nl(self) -> int:
        """Token of a new line; -1 if there is none."""
        return self._model.token_nl()

    def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Split a text into tokens.

        Parameters
        ----------
        text : str or bytes
            Bytes are taken to be UTF-8.
        add_bos : bool
            Begin with the BOS token, for models that want one.
        special : bool
            Read the names of special tokens in the text as these tokens.

        Returns
        -------
        list of int
        """
        data = text.encode("utf-8", errors="replace") if isinstance(text, str) else text
        return self._model.tokenize(data, add_bos, special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """Text of tokens, as UTF-8 bytes: a token may be part of a character.

        Parameters
        ----------
        tokens : sequence of int
        special : bool
            Write the names of special tokens too.

        Raises
        ------
        ValueError
            When a token is not in the vocabulary.
        """
        return self._model.detokenize(tokens, False, special)

    # -- stored tokens -----------------------------------------------------------------------------

    @property
    def n_tokens(self) -> int:
        """Tokens stored."""
        return len(self._tokens)

    @property
    def tokens(self) -> list[int]:
        """The tokens stored, a copy."""
        return self._tokens.copy()

    def reset(self) -> None:
        """Forget all stored tokens."""
        with self._computing():
            self._version += 1
            self._truncate(0)

    def truncate(self, n_tokens: int) -> int:
        """Forget all but the first `n_tokens` stored tokens.

        Returns
        -------
        int
            Tokens stored now: `n_tokens`, or 0 where the memory cannot remove this tail alone.

        Raises
        ------
        ValueError
            When `n_tokens` is negative or more than are stored.
        """
        with self._computing():
            if not 0 <= n_tokens <= len(self._tokens):
                raise ValueError(
                    f"n_tokens = {n_tokens} is out of range: {len(self._tokens)} tokens are stored"
                )
            self._version += 1
            self._truncate(n_tokens)
            return len(self._tokens)

    def _truncate(self, n_tokens: int) -> None:
        if n_tokens == len(self._tokens):
            return
        self._has_logits = False
        if n_tokens == 0 or not self._ctx.seq_rm(n_tokens):
            self._ctx.clear()
            n_tokens = 0
        del self._tokens[n_tokens:]

    def _sync(self) -> None:
        """Make the list of tokens and the memory agree, after an exception at any place.

        Tokens are appended to the list before they are decoded, and removed from it after they are removed
        from the memory: the list can only be too long.
        """
        n_past = self._ctx.n_past()
        if n_past < len(self._tokens):
            del self._tokens[n_past:]
            self._has_logits = False

    # -- evaluation --------------------------------------------------------------------------------

    @overload
    def eval(
        self,
        tokens: Sequence[int],
        all_logits: Literal[False] = False,
        progress: ProgressCallback | None = None,
    ) -> None: ...

    @overload
    def eval(
        self, tokens: Sequence[int], all_logits: Literal[True], progress: ProgressCallback | None = None
    ) -> npt.NDArray[np.float32]: ...

    def eval(
        self, tokens: Sequence[int], all_logits: bool = False, progress: ProgressCallback | None = None
    ) -> npt.NDArray[np.float32] | None:
        """Append tokens to those stored.

        Parameters
        ----------
        tokens : sequence of int
        all_logits : bool
            Return the logits of every token, not only keep those of the last one (see `logits`).
        progress : callable or None
            ``progress(n_done, n_total)`` after every batch; ``None``: the one given to the constructor.

        Returns
        -------
        ndarray of float32 or None
            Logits ``[len(tokens), n_vocab]`` with `all_logits`.

        Raises
        ------
        ValueError
            When a token is not in the vocabulary, or there is no room for the tokens in `n_ctx`.
        MemoryError
            When the store cannot grow; the batches before the failing one stay stored.
        KeyboardInterrupt, InterruptedError
            After Ctrl-C, and after `interrupt`.
        """
        with self._computing():
            self._version += 1
            self._ctx.interrupt_clear()
            return self._eval(tokens, all_logits, progress or self.progress)

    def _eval(
        self, tokens: Sequence[int], all_logits: bool = False, progress: ProgressCallback | None = None
    ) -> npt.NDArray[np.float32] | None:
        ctx, n_total = self._ctx, len(tokens)
        if len(self._tokens) + n_total > self._n_ctx:
            raise ValueError(
                f"{n_total} tokens after {len(self._tokens)} stored ones are more than "
                f"n_ctx = {self._n_ctx}: use a larger n_ctx, or reset()"
            )

        logits = np.empty((n_total, self.n_vocab()), dtype=np.float32) if all_logits else None
        outputs = _core.Context.Outputs
        try:
            n_done = 0
            while n_done < n_total:
                # The last two share what is left: blocks are selected for the end of the last one, which
                # must not be short (see init_batch() in csrc/llama/llama-kv-cache-infllm.cpp).
                i, n_left = n_done, n_total - n_done
                n_done += n_left if n_left <= self._n_batch else min(self._n_batch, -(-n_left // 2))
                batch = list(tokens[i:n_done])

                self._has_logits = False
                self._tokens.extend(batch)
                ctx.decode(
                    batch, outputs.ALL if all_logits else outputs.LAST if n_done == n_total else outputs.NONE
                )
                self._has_logits = n_done == n_total

                if logits is not None:
                    logits[i:n_done] = ctx.logits_rows(len(batch))
                if self._trace:
                    for event in ctx.take_trace():
                        self._trace(event)
                if progress:
                    progress(n_done, n_total)
        finally:
            self._sync()
        return logits

    def prefill(self, tokens: Sequence[int], progress: ProgressCallback | None = None) -> int:
        """Make the stored tokens `tokens`, and evaluate only what differs from those stored before.

        Returns
        -------
        int
            Tokens at the beginning that were stored already.

        Raises
        ------
        ValueError
            When `tokens` is empty or longer than `n_ctx`.
        MemoryError, KeyboardInterrupt, InterruptedError
            As `eval`.
        """
        tokens = list(tokens)
        self._check_prompt(tokens)
        with self._computing():
            self._version += 1
            self._ctx.interrupt_clear()
            return self._prefill(tokens, progress or self.progress)

    def _check_prompt(self, tokens: list[int]) -> None:
        if not tokens:
            raise ValueError("the prompt is empty: give at least one token")
        if len(tokens) > self._n_ctx:
            raise ValueError(
                f"the prompt has {len(tokens)} tokens, more than n_ctx = {self._n_ctx}: "
                "use a larger n_ctx or a shorter prompt"
            )

    def _prefill(self, tokens: list[int], progress: ProgressCallback | None) -> int:
        # the last token is always evaluated, for its logits
        self._truncate(min(_n_common(self._tokens, tokens), len(tokens) - 1))
        n_cached = len(self._tokens)
        self._eval(tokens[n_cached:], progress=progress)
        return n_cached

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """Logits of the last stored token, ``[n_vocab]``, a copy.

        Raises
        ------
        RuntimeError
            When no token was evaluated since the last reset or truncation.
        """
        with self._computing():
            self._check_logits()
            return self._ctx.logits()

    def _check_logits(self) -> None:
        if not self._has_logits:
            raise RuntimeError("there are no logits: evaluate tokens first")

    def interrupt(self) -> None:
        """Stop the call that computes in another thread: it raises InterruptedError."""
        self._ctx.interrupt()

    # -- statistics --------------------------------------------------------------------------------

    def stats(self) -> InfLLMStats | None:
        """Statistics of the InfLLM memory, in total and per layer; None without it.

        May be called from another thread while the object computes.
        """
        ctx, model = self._ctx, self._model
        total = ctx.stats()
        if total is None:
            return None
        layers = [ctx.stats(il) for il in range(model.n_layer())]
        return InfLLMStats._from_core(
            total, tuple(InfLLMStats._from_core(layer) for layer in layers if layer is not None)
        )

    def reset_stats(self) -> None:
        """Set the counters of `stats` to zero; the sizes stay."""
        self._ctx.reset_stats()

    def set_trace(self, callback: TraceCallback | None) -> None:
        """Call `callback` for every selection: per layer and ubatch, in order, after the batch was computed.

        Parameters
        ----------
        callback : callable or None
            Called with a `TraceEvent`; ``None`` ends the trace. Without the InfLLM memory nothing
            is ever selected. A device that pages keeps its scores to itself: from the first trace on the host
            pages.
        """
        with self._computing():
            self._ctx.set_trace(callback is not None)
            self._trace = callback

    # -- generation --------------------------------------------------------------------------------

    @overload
    def create_completion(
        self,
        prompt: str | Sequence[int],
        *,
        echo: bool = ...,
        stream: Literal[False] = ...,
        **options: Unpack[CompletionOptions],
    ) -> Completion: ...

    @overload
    def create_completion(
        self,
        prompt: str | Sequence[int],
        *,
        echo: bool = ...,
        stream: Literal[True],
        **options: Unpack[CompletionOptions],
    ) -> Iterator[CompletionChunk]: ...

    def create_completion(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        echo: bool = False,
        stream: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Completion | Iterator[CompletionChunk]:
        """Continue a text. ``llm(prompt, ...)`` is the same.

        Tokens at the beginning of `prompt` that are stored already are not evaluated again.

        Parameters
        ----------
        prompt : str or sequence of int
            Text, or tokens.
        max_tokens : int or None
            Tokens to generate at most; ``None`` or below 1: what `n_ctx` leaves room for.
        temperature : float
            0: always the most likely token.
        top_k : int
            Draw from this many most likely tokens; 0: all.
        top_p : float
            Draw from the most likely tokens that make up this probability; 1: all.
        min_p : float
            Draw from tokens at least this likely, relative to the most likely one; 0: all.
        repeat_penalty, frequency_penalty, presence_penalty : float
            Penalties on the last 64 tokens; 1, 0 and 0: none.
        stop : str, sequence of str or None
            Strings that end the text.
        seed : int or None
            ``None``: the constructor's.
        echo : bool
            Begin the text with the prompt.
        stream : bool
            Return an iterator over pieces of the text.
        progress : callable or None
            ``progress(n_done, n_total)`` after every batch of the prompt that has to be evaluated.

        Returns
        -------
        Completion or iterator of CompletionChunk
            Dictionaries of OpenAI's shape. ``finish_reason`` is ``"stop"`` or, when `max_tokens` or `n_ctx`
            is reached, ``"length"``.

        Raises
        ------
        ValueError
            When a parameter is out of range, or the prompt is empty or longer than `n_ctx`.
        RuntimeError
            From a stream, when another call changed the stored tokens meanwhile.
        MemoryError, KeyboardInterrupt, InterruptedError
            As `eval`; the object can be used on.
        """
        tokens = self._prompt_tokens(prompt)
        pieces = self._generate(
            tokens,
            max_tokens=max_tokens,
            stop=stop,
            stream=stream,
            progress=progress,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
        )
        prefix = ""
        if echo:
            prefix = (
                prompt
                if isinstance(prompt, str)
                else self.detokenize(tokens).decode("utf-8", errors="replace")
            )

        chunks = self._completion_chunks(prefix, pieces)
        if stream:
            return chunks
        with self._computing():
            return _join_completion(chunks)

    __call__ = create_completion

    @overload
    def create_chat_completion(
        self,
        messages: Sequence[ChatMessage],
        *,
        stream: Literal[False] = ...,
        **options: Unpack[CompletionOptions],
    ) -> ChatCompletion: ...

    @overload
    def create_chat_completion(
        self, messages: Sequence[ChatMessage], *, stream: Literal[True], **options: Unpack[CompletionOptions]
    ) -> Iterator[ChatCompletionChunk]: ...

    def create_chat_completion(
        self,
        messages: Sequence[ChatMessage],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.2,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        stream: bool = False,
        progress: ProgressCallback | None = None,
    ) -> ChatCompletion | Iterator[ChatCompletionChunk]:
        """Answer the last message of a chat, with the chat template in the GGUF.

        Parameters
        ----------
        messages : sequence of ChatMessage
            ``{"role": "user", "content": "..."}`` and so on, oldest first. What an earlier turn stored is
            reused.

        Other parameters, returned values and errors are as for `create_completion`; ValueError is also
        raised when the template refuses the messages.
        """
        pieces = self._generate(
            self.chat_tokens(messages),
            max_tokens=max_tokens,
            stop=stop,
            stream=stream,
            progress=progress,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
        )
        chunks = self._chat_chunks(pieces)
        if stream:
            return chunks
        with self._computing():
            return _join_chat(chunks)

    def chat_prompt(self, messages: Sequence[ChatMessage], add_generation_prompt: bool = True) -> str:
        """The prompt that the chat template makes of `messages`."""
        model = self._model
        bos, eos = model.token_bos(), model.token_eos()
        return chat.render(
            messages,
            self.chat_template or model.chat_template(),
            bos_token=model.token_text(bos) if bos >= 0 else "",
            eos_token=model.token_text(eos) if eos >= 0 else "",
            add_generation_prompt=add_generation_prompt,
        )

    def chat_tokens(self, messages: Sequence[ChatMessage], add_generation_prompt: bool = True) -> list[int]:
        """Tokens of `chat_prompt`."""
        return self.tokenize_chat(self.chat_prompt(messages, add_generation_prompt))

    def tokenize_chat(self, prompt: str) -> list[int]:
        """Tokens of a rendered chat: special tokens are read, and BOS is not doubled."""
        bos = self._model.token_bos()
        has_bos = bos >= 0 and prompt.startswith(self._model.token_text(bos))
        return self.tokenize(prompt, add_bos=not has_bos, special=True)

    def _prompt_tokens(self, prompt: str | Sequence[int]) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        bos = self._model.token_bos()
        # an empty text is a fair prompt for a model that can begin with BOS
        return self.tokenize(prompt, special=True) or ([bos] if bos >= 0 else [])

    def _generate(
        self,
        tokens: list[int],
        *,
        max_tokens: int | None,
        stop: str | Sequence[str] | None,
        stream: bool,
        progress: ProgressCallback | None,
        seed: int | None,
        **sampling: Any,
    ) -> Iterator[_Piece]:
        """Check the arguments now; compute when iterated: a stream lets other calls in between its pieces."""
        self._check_prompt(tokens)

        stops = [stop] if isinstance(stop, str) else list(stop or ())
        if "" in stops:
            raise ValueError("stop has an empty string, which would end every text at once: remove it")

        sampler = self._sampler(seed=self._seed if seed is None else seed, **sampling)
        n_max = max_tokens if max_tokens is not None and max_tokens > 0 else self._n_ctx

        computing = self._computing if stream else nullcontext
        return self._pieces(tokens, sampler, TextStream(stops), n_max, progress or self.progress, computing)

    def _sampler(self, *, seed: int, **p: Any) -> _core.Sampler:
        _check_range("seed", seed, 0, 2**32 - 1)
        _check_range("temperature", p["temperature"], 0, float("inf"))
        _check_range("top_k", p["top_k"], 0, 2**31 - 1)
        _check_range("top_p", p["top_p"], 0, 1)
        _check_range("min_p", p["min_p"], 0, 1)
        _check_range("repeat_penalty", p["repeat_penalty"], 1e-6, 1e6)
        _check_range("frequency_penalty", p["frequency_penalty"], -1e6, 1e6)
        _check_range("presence_penalty", p["presence_penalty"], -1e6, 1e6)
        return _core.Sampler(self._model, seed=seed, penalty_last_n=_PENALTY_LAST_N, **p)

    def _pieces(
        self,
        tokens: list[int],
        sampler: _core.Sampler,
        text: TextStream,
        n_max: int,
        progress: ProgressCallback | None,
        computing: Callable[[], AbstractContextManager[None]],
    ) -> Iterator[_Piece]:
        n_generated = n_evaluated = 0
        finish_reason: FinishReason | None = None

        t_start = time.perf_counter()
        with computing():
            self._version += 1
            version = self._version
            self._ctx.interrupt_clear()

            n_cached = self._prefill(tokens, progress)
            sampler.accept(tokens[-_PENALTY_LAST_N:])
        t_prompt = time.perf_counter()

        t_predicted = 0.0
        token: int | None = None
        while finish_reason is None:
            t_step = time.perf_counter()
            with computing():
                if version != self._version:
                    raise RuntimeError("another call changed the stored tokens: this stream cannot go on")
                if token is not None:
                    self._eval([token])
                    n_evaluated += 1
                self._check_logits()
                token = sampler.sample(self._ctx)

                new = ""
                if self._model.is_eog(token):
                    finish_reason = "stop"
                else:
                    n_generated += 1
                    new = text.push(self._model.token_to_piece(token, False))
                    if text.stopped:
                        finish_reason = "stop"
                    elif n_generated == n_max or len(self._tokens) == self._n_ctx:
                        finish_reason = "length"
            t_predicted += time.perf_counter() - t_step

            if finish_reason is None and new:
                yield _Piece(new)

        new += text.finish()
        n_prompt = len(tokens)
        ms_prompt, ms_predicted = 1e3 * (t_prompt - t_start), 1e3 * t_predicted
        yield _Piece(
            new,
            # a stop string may be completed by what was held back
            finish_reason="stop" if text.stopped else finish_reason,
            usage={
                "prompt_tokens": n_prompt,
                "completion_tokens": n_generated,
                "total_tokens": n_prompt + n_generated,
                "prompt_tokens_details": {"cached_tokens": n_cached},
            },
            timings={
                "cache_n": n_cached,
                "prompt_n": n_prompt - n_cached,
                "prompt_ms": ms_prompt,
                "prompt_per_second": 1e3 * (n_prompt - n_cached) / max(ms_prompt, 1e-6),
                "predicted_n": n_generated,
                "predicted_ms": ms_predicted,
                "predicted_per_second": 1e3 * n_evaluated / max(ms_predicted, 1e-6),
            },
        )

    def _completion_chunks(self, prefix: str, pieces: Iterator[_Piece]) -> Iterator[CompletionChunk]:
        head = _Head(f"cmpl-{uuid.uuid4()}", self.model_path)
        for piece in pieces:
            chunk: CompletionChunk = {
                "id": head.id,
                "object": "text_completion",
                "created": head.created,
                "model": head.model,
                "choices": [
                    {
                        "text": prefix + piece.text,
                        "index": 0,
                        "logprobs": None,
                        "finish_reason": piece.finish_reason,
                    }
                ],
            }
            prefix = ""
            if piece.usage and piece.timings:
                chunk["usage"] = piece.usage
                chunk["timings"] = piece.timings
            yield chunk

    def _chat_chunks(self, pieces: Iterator[_Piece]) -> Iterator[ChatCompletionChunk]:
        head = _Head(f"chatcmpl-{uuid.uuid4()}", self.model_path)

        def chunk(delta: ChatDelta, finish_reason: FinishReason | None = None) -> ChatCompletionChunk:
            return {
                "id": head.id,
                "object": "chat.completion.chunk",
                "created": head.created,
                "model": head.model,
                "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
            }

        yield chunk({"role": "assistant"})
        for piece in pieces:
            if piece.text:
                yield chunk({"content": piece.text})
            if piece.usage and piece.timings:
                last = chunk({}, piece.finish_reason)
                last["usage"] = piece.usage
                last["timings"] = piece.timings
                yield last


class _Head:
    """What all chunks of a completion share."""

    def __init__(self, id: str, model: str) -> None:
        self.id = id
        self.model = model
        self.created = int(time.time())


def _join_completion(chunks: Iterator[CompletionChunk]) -> Completion:
    text = ""
    for chunk in chunks:
        text += chunk["choices"][0]["text"]
    choice = chunk["choices"][0]
    return {**chunk, "choices": [{**choice, "text": text}]}  # type: ignore[typeddict-item]


def _join_chat(chunks: Iterator[ChatCompletionChunk]) -> ChatCompletion:
    content = ""
    for chunk in chunks:
        content += chunk["choices"][0]["delta"].get("content", "")
    return {
        "id": chunk["id"],
        "object": "chat.completion",
        "created": chunk["created"],
        "model": chunk["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content},
                "logprobs": None,
                "finish_reason": chunk["choices"][0]["finish_reason"],
            }
        ],
        "usage": chunk["usage"],
        "timings": chunk["timings"],
    }


# -- making models and contexts, also for `infllm info` --------------------------------------------


def load_model(
    path: str | os.PathLike[str],
    *,
    n_gpu_layers: int = 0,
    devices: Sequence[str] | None = None,
    tensor_split: Sequence[float] | None = None,
    use_mmap: bool = True,
    use_mlock: bool = False,
    no_alloc: bool = False,
) -> _core.Model:
    """Load a GGUF file; with `no_alloc` its metadata and vocabulary alone. Errors: see `Llama`."""
    check_gguf(path)
    try:
        return _core.Model(
            str(Path(path)), n_gpu_layers, devices, tensor_split or (), use_mmap, use_mlock, no_alloc
        )
    except _core.DeviceLostError:
        raise
    except RuntimeError as err:
        raise ValueError(
            f"{os.fspath(path)} cannot be loaded: {_reason(str(err))} (is the file complete, and a model?)"
        ) from None


def resolve_infllm(
    model: _core.Model,
    config: InfLLMConfig | None,
    n_ctx: int,
    n_batch: int,
    n_ubatch: int | None,
    type_k: KVType,
    type_v: KVType,
) -> tuple[_core.InfLLMParams | None, int]:
    """Fill in automatic values, of `n_ubatch` too; ValueError when the parameters cannot work."""
    n_ubatch_auto = min(_N_UBATCH, n_batch)
    if config is None:
        return None, min(n_ubatch or n_ubatch_auto, n_batch)

    params = config._to_params()
    if n_ubatch is None:
        # the local window is known only when resolved, and bounds n_ubatch
        n_local = model.infllm_resolve(n_ctx, n_batch, 1, type_k, type_v, params).n_local
        n_ubatch = min(n_ubatch_auto, n_local)
    n_ubatch = min(n_ubatch, n_batch)
    return model.infllm_resolve(n_ctx, n_batch, n_ubatch, type_k, type_v, params), n_ubatch


@contextmanager
def _without_env(name: str) -> Iterator[None]:
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


def _reason(log: str) -> str:
    """The one line of llama.cpp's log that says why."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if not lines:
        return "no reason was given"
    # the deepest function speaks first, and begins with its name; what libllama says by itself does not
    line = re.sub(r"^[A-Za-z_][\w:]*: ", "", lines[0])
    for prefix in ("error loading model: ", "failed to initialize the context: "):
        line = line.removeprefix(prefix)
    return line


def _n_common(a: list[int], b: list[int]) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} = {value!r} is not a number")
    if not low <= value <= high:
        raise ValueError(f"{name} = {value} is out of range: use a value from {low} to {high}")


def check_kv_type(name: str, value: str) -> KVType:
    """`value`, or ValueError naming `name`."""
    if value in get_args(KVType):
        return cast(KVType, value)
    raise ValueError(f"{name} = {value!r} is unknown: use 'f16', 'q8_0' or 'q4_0'")
