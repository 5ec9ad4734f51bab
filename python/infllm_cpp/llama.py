"""The `Llama` class: a GGUF model with a context, plain or with the InfLLM memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _core, models
from ._completions import Completer, CompletionOptions
from ._devices import choose_devices, choose_split
from ._embedding import Embedder, check_embedder, check_embedding, make_embedding_context
from ._following import FollowingContext
from ._library import SessionLibrary
from ._loading import (
    KVType,
    check_context,
    check_decoder,
    check_int,
    check_range,
    context_options,
    context_sizes,
    divide_budget,
    load_model,
    make_context,
    resolve_context,
)
from ._model_changes import MetadataValue, ModelChanges
from ._reading import ProgressCallback, Reader, TraceCallback
from ._rope import RopeOptions
from ._sessions import session_config
from ._state import LlamaState, StateOwner
from ._threads import default_n_threads
from ._unsupported import refuse_unsupported
from .config import InfLLMConfig

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CompletionOptions", "KVType", "Llama", "LlamaState", "ProgressCallback", "TraceCallback"]

_INFLLM_DEFAULT = InfLLMConfig()

# what a fork has from the first one, beside the context
_ATTRIBUTES = (
    "model_path",
    "verbose",
    "chat_template",
    "parse_special",
    "_seed",
    "_kv_types",
    "_asked",
    "_changes",
    "_rope",
    "_embedding",
    "_library",
    "_make",
)


class Llama(Embedder, StateOwner, Completer):
    """A GGUF model and a context of one sequence.

    Names and meaning of parameters and methods follow llama-cpp-python where it has them.

    Parameters
    ----------
    model_path : str or os.PathLike
        A GGUF file.
    n_ctx : int
        Tokens that the context can hold. 0: as many as there is memory for, and `store_max_bytes`; or the
        training length without the method. With the method memory is taken as tokens come.
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
        same llama.cpp release, and be trusted, as must the network: nothing is encrypted, and nobody is asked
        who he is. There is a warning where an address is not of this machine.
    tensor_split : sequence of float or None
        Share of the layers for each device; ``None``: by free memory.
    split_mode : {"layer", "none", "row", "tensor"}
        What goes to each device: whole layers; all to `main_gpu`; pieces of layers, which the InfLLM memory
        does not work with. The numbers in ``llama.h`` will do. Without a device nothing is split.
    main_gpu : int
        The device that has all with ``split_mode="none"``, counted from 0.
    kv_overrides : mapping or None
        Metadata in place of that in the GGUF: names such as ``"llama.rope.freq_base"`` to values of the type
        that the file has there. What the loader of the model does not ask for has no effect.
    lora_path : str, os.PathLike or None
        A GGUF file with a LoRA adapter for the model.
    lora_scale : float
        How much of it is added to the weights.
    infllm : InfLLMConfig or None
        The InfLLM memory; ``None``: plain llama.cpp. This argument alone decides: the environment variable
        ``LLAMA_INFLLM``, which is for other programs, is ignored.
    seed : int
        Seed of the sampler where a call gives none; 0xFFFFFFFF: a random one.
    type_k, type_v : {"f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"}
        Types of K and V; their numbers in ``ggml.h`` will do, and ``None``, which is f16.
    use_mmap, use_mlock : bool
        Map the file into memory; keep it from being swapped out.
    repack : bool
        Lay weights out for the CPU's own kernels (AMX and others), which are faster and round otherwise
        than those of other machines. ``False``: as llama.cpp's ``--no-repack``.
    offload_kqv : bool
        Keep K and V on the device of their layer.
    flash_attn : bool or None
        Flash attention; ``None``: where the device has it. The InfLLM memory needs it.
    rope_scaling_type : {"none", "linear", "yarn", "longrope"} or None
        How RoPE is stretched; ``None``, or -1: as the model says. The numbers in ``llama.h`` will do.
    rope_freq_base, rope_freq_scale : float
        Base of RoPE's frequencies, and what they are multiplied by: 0.5 for texts of twice the training
        length. 0: as the model says.
    yarn_ext_factor, yarn_attn_factor, yarn_beta_fast, yarn_beta_slow : float
        Of YaRN (arXiv 2309.00071): the share of extrapolation, a factor of the magnitude where llama.cpp
        does not compute it, and the limits of the ramp. Below 0: as the model says.
    yarn_orig_ctx : int
        Training length that YaRN extends, tokens; 0: as the model says. With another scale than the model's
        the training length is this one divided by `rope_freq_scale`, for the InfLLM memory, too.
    embedding : bool
        Compute embeddings (`embed`, `create_embedding`) and nothing else; needs ``infllm=None``. A text has
        at most `n_batch` tokens then. For encoders such as BERT, too.
    pooling_type : {"none", "mean", "cls", "last"} or None
        How embeddings of tokens become one of a text; ``None``, or -1: as the model says.
    attention_type : {"causal", "non-causal"} or None
        Whether a token sees those after it in embeddings; ``None``, or -1: as the model says.
    chat_template : str or None
        Jinja template to use instead of the one in the GGUF.
    parse_special : bool
        Read names of special tokens in messages as these tokens, as llama-cpp-python does. A message can then
        end its turn and go on as the system: only for messages whose every text you trust.
    session : str, os.PathLike or None
        A file of `save_session` to begin with, see `load_session`.
    session_dir : str, os.PathLike or None
        A folder of such files: a prompt goes on from the one that has most of its beginning, if that saves
        reading 256 tokens or more. Files in it may come, change and go at any time.
    verbose : bool
        Print llama.cpp's log to stderr. The log is one for the process: the last `Llama` made decides.
    progress : callable or None
        ``progress(n_done, n_total)`` after every batch of a prompt, tokens.
    **unsupported
        Other parameters of llama-cpp-python, at their defaults there.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        When `model_path` or `lora_path` cannot be read.
    NotADirectoryError
        When `session_dir` is no folder.
    TypeError
        When a parameter is of a wrong type, unknown or not supported.
    ValueError
        When the file is not a GGUF model or is damaged, when an adapter does not fit the model, or when
        parameters are out of range or contradict each other.
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
    that computes, from a callback or a signal handler while the same thread computes, raises RuntimeError.

    Processes: a Llama works in the process that made it. Start others by spawn, or fork before the first one
    is made (where there is a GPU: before infllm_cpp is imported); too late, it is a RuntimeError.

    With the method and ``n_ctx=0`` the context follows the text: up to the training length it is one of that
    length, with true positions; a text that outgrows it is read again, once, by one without that limit.
    `infllm` tells the parameters of now, `n_ctx` the limit.

    Ctrl-C stops a computation on the CPU within a fraction of a second, and one that a device cannot stop
    after the batch. Whole ubatches that were computed until then stay stored, so that the same prompt given
    again continues where it stopped.
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
        split_mode: str | int = "layer",
        main_gpu: int = 0,
        kv_overrides: Mapping[str, MetadataValue] | None = None,
        lora_path: str | os.PathLike[str] | None = None,
        lora_scale: float = 1.0,
        infllm: InfLLMConfig | None = _INFLLM_DEFAULT,
        seed: int = _core.DEFAULT_SEED,
        type_k: KVType | int | None = "f16",
        type_v: KVType | int | None = "f16",
        use_mmap: bool = True,
        use_mlock: bool = False,
        repack: bool = True,
        offload_kqv: bool = True,
        flash_attn: bool | None = None,
        rope_scaling_type: str | int | None = None,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        yarn_ext_factor: float = -1.0,
        yarn_attn_factor: float = -1.0,
        yarn_beta_fast: float = -1.0,
        yarn_beta_slow: float = -1.0,
        yarn_orig_ctx: int = 0,
        embedding: bool = False,
        pooling_type: str | int | None = None,
        attention_type: str | int | None = None,
        chat_template: str | None = None,
        parse_special: bool = False,
        session: str | os.PathLike[str] | None = None,
        session_dir: str | os.PathLike[str] | None = None,
        verbose: bool = False,
        progress: ProgressCallback | None = None,
        **unsupported: Any,
    ) -> None:
        refuse_unsupported(unsupported)
        type_k, type_v = check_context(n_ctx, n_batch, n_ubatch, type_k, type_v)
        check_int("n_threads", n_threads, 1, 512)
        check_int("n_threads_batch", n_threads_batch, 1, 512)
        check_int("n_gpu_layers", n_gpu_layers, -1, 2**31 - 1)
        check_int("seed", seed, 0, 2**32 - 1)
        for share in tensor_split or ():
            check_range("tensor_split", share, 0, 1e6)
        if infllm is not None and not isinstance(infllm, InfLLMConfig):
            raise TypeError(f"infllm = {infllm!r} is neither an InfLLMConfig nor None")
        if session is not None and infllm is not None:
            infllm = session_config(session, infllm)
        pooling, attention = check_embedding(embedding, pooling_type, attention_type, infllm is not None)
        rope = RopeOptions.check(
            rope_scaling_type,
            rope_freq_base,
            rope_freq_scale,
            yarn_ext_factor,
            yarn_attn_factor,
            yarn_beta_fast,
            yarn_beta_slow,
            yarn_orig_ctx,
        )
        changes = ModelChanges.check(lora_path, lora_scale, kv_overrides)
        n_gpu_layers, device_names = choose_devices(n_gpu_layers, devices, rpc_servers)
        split, main_gpu = choose_split(split_mode, main_gpu, device_names, infllm is not None)

        self.model_path = os.path.expanduser(os.fspath(model_path))
        self.verbose = verbose
        self.chat_template = chat_template
        self.parse_special = parse_special
        self._seed = seed
        self._kv_types = (type_k, type_v)
        self._changes = changes
        self._rope = rope
        self._embedding = embedding
        self._asked = {"n_ctx": n_ctx, "n_batch": n_batch, "n_ubatch": n_ubatch}
        self._asked.update(infllm._changes() if infllm else {})
        self._library = None if session_dir is None else SessionLibrary(session_dir)

        _core.set_verbose(verbose)
        model = load_model(
            model_path,
            n_gpu_layers=n_gpu_layers,
            devices=device_names,
            tensor_split=tensor_split or (),
            split_mode=split,
            main_gpu=main_gpu,
            use_mmap=use_mmap,
            use_mlock=use_mlock,
            repack=repack,
            kv_overrides=changes.kv_overrides,
            lora_path=changes.lora_path,
            lora_scale=changes.lora_scale,
        )
        if embedding:
            check_embedder(model, self.model_path)
        else:
            check_decoder(model, self.model_path)
        rope.check_model(model)
        n_threads = n_threads or default_n_threads()
        base = context_options(
            n_batch,
            (type_k, type_v),
            n_threads=n_threads,
            n_threads_batch=n_threads_batch or n_threads,
            offload_kqv=offload_kqv,
            flash_attn=flash_attn,
            embedding=embedding,
            pooling_type=pooling,
            attention_type=attention,
            **vars(rope),
        )

        if infllm is not None:
            infllm = divide_budget(model, infllm, n_ctx, n_ubatch, base)

        def make(size: int) -> _core.Context:
            if embedding:
                return make_embedding_context(model, base, size, n_ubatch)
            return make_context(model, resolve_context(model, infllm, size, n_ubatch, base))

        if n_ctx == 0 and infllm is not None:
            sizes = context_sizes(model, infllm, n_ubatch, base)
            following = FollowingContext(sizes, make)
            super().__init__(model, following.first(), sizes.limit, progress, following)
        else:
            n_ctx = n_ctx or model.n_ctx_train(base)
            super().__init__(model, make(n_ctx), n_ctx, progress)
        self._make: Callable[[int], _core.Context] | None = make
        if session is not None:
            self.load_session(session)

    @classmethod
    def from_pretrained(cls, repo_id: str, filename: str, **options: Any) -> Self:
        """A `Llama` of a file on the Hugging Face hub, which is downloaded if it is not there yet.

        Parameters
        ----------
        repo_id, filename : str
            Such as ``"ggml-org/gemma-3-270m-GGUF"`` and the name of a file in it.
        **options
            Of `Llama`.

        Raises
        ------
        RuntimeError
            When huggingface-hub is not installed, or the download fails.
        """
        return cls(models.find(f"{repo_id}:{filename}"), **options)

    def close(self) -> None:
        """Free the model and the context. May be called twice; waits for a call that computes."""
        super().close()
        self._make = None  # has the model

    def fork(self) -> Self:
        """A second `Llama` that goes on from here, with the same model and parameters.

        Stored blocks are shared, not copied; the resident buffer and the representative keys are its own.
        Both can be used in threads of their own, and each is closed on its own.

        Returns
        -------
        Llama

        Raises
        ------
        RuntimeError, MemoryError
            When there is no memory for a second context.
        """
        with self._computing():
            res = object.__new__(type(self))
            for name in _ATTRIBUTES:
                setattr(res, name, getattr(self, name))
            following = self._following and self._following.fork()
            assert self._make is not None
            ctx = self._make(following.size if following else self._n_ctx)
            Reader.__init__(res, self._model, ctx, self._n_ctx, self.progress, following)
            res._take_over(self)
            return res
