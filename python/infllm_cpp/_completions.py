"""The part of `Llama` that completes texts and chats: OpenAI's parameters and answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

from . import _core
from ._loading import check_int
from ._model_owner import ModelOwner
from ._reading import ProgressCallback
from ._responses import chat_chunks, completion_chunks, join_chat, join_completion
from ._sampling import LogitsProcessor, StoppingCriteria, response_schema
from ._tokens import as_tokens
from .chat import ReasoningFormat, ToolChoice
from .grammar import LlamaGrammar
from .types import ChatCompletion, ChatCompletionChunk, ChatMessage, ChatTool, Completion, CompletionChunk

if TYPE_CHECKING:
    from typing_extensions import Unpack


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
    typical_p: float
    mirostat_mode: int
    mirostat_tau: float
    mirostat_eta: float
    logit_bias: Mapping[Any, Any] | None
    grammar: LlamaGrammar | str | None
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None
    model: str | None
    stop: str | Sequence[str] | None
    seed: int | None
    progress: ProgressCallback | None


class Completer(ModelOwner):
    """Completions, as llama-cpp-python has them."""

    model_path: str

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
        typical_p: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        logit_bias: Mapping[Any, Any] | None = None,
        grammar: LlamaGrammar | str | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        stopping_criteria: StoppingCriteria | Sequence[StoppingCriteria] | None = None,
        logprobs: int | None = None,
        suffix: str | None = None,
        model: str | None = None,
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
            Text, or tokens. Names of special tokens in a text are read as these tokens: such a prompt is
            written by the program. Give ``tokenize(text)`` for a text of somebody else.
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
        typical_p : float
            Locally typical sampling (arXiv 2202.00666), the probability kept; 1: off.
        mirostat_mode, mirostat_tau, mirostat_eta : int, float, float
            Mirostat (arXiv 2007.14966) in place of the other truncations: 0: off, 1, or 2: version 2.0; the
            surprise aimed at, in nats, and the learning rate.
        logit_bias : mapping or None
            Token to a number that is added to its logit.
        grammar : LlamaGrammar, str or None
            GBNF that the text must follow.
        logits_processor : callable, sequence of them or None
            ``processor(tokens, logits)`` returns the logits to draw from; in turns.
        stopping_criteria : callable, sequence of them or None
            ``criterion(tokens, logits)``: whether the text ends before a token is drawn.
        logprobs : int or None
            Log probabilities of the tokens, and of so many of the most likely ones at each.
        suffix : str or None
            What comes after the text that is asked for, for models that can fill in.
        model : str or None
            Name of the model in the answer; ``None``: its path.
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
        TypeError
            When `prompt` is neither text nor integers, or another parameter has a wrong type.
        ValueError
            When a parameter is out of range, or the prompt is empty or longer than `n_ctx`.
        RuntimeError
            From a stream, when another call changed the stored tokens meanwhile.
        MemoryError, KeyboardInterrupt, InterruptedError
            As `eval`; the object can be used on.
        """
        tokens = self._prompt_tokens(prompt) if suffix is None else self._infill_tokens(prompt, suffix)
        check_int("logprobs", logprobs, 0, self.n_vocab())
        pieces = self._generate(
            tokens,
            n_logprobs=logprobs,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            grammar=grammar,
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
            typical_p=typical_p,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            logit_bias=logit_bias,
        )
        prefix = ""
        if echo:
            prefix = (
                prompt
                if isinstance(prompt, str)
                else self.detokenize(tokens).decode("utf-8", errors="replace")
            )

        chunks = completion_chunks(model or self.model_path, prefix, pieces, self._token_bytes)
        if stream:
            return chunks
        with self._computing():
            return join_completion(chunks)

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
        typical_p: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        logit_bias: Mapping[Any, Any] | None = None,
        grammar: LlamaGrammar | str | None = None,
        response_format: Mapping[str, Any] | None = None,
        tools: Sequence[ChatTool] | None = None,
        tool_choice: ToolChoice | None = None,
        parallel_tool_calls: bool | None = None,
        reasoning_format: ReasoningFormat = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        logprobs: bool = False,
        top_logprobs: int | None = None,
        model: str | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        stream: bool = False,
        progress: ProgressCallback | None = None,
    ) -> ChatCompletion | Iterator[ChatCompletionChunk]:
        """Answer the last message of a chat, with the chat template in the GGUF.

        Templates, tool calls and reasoning are those of llama.cpp's `common`, as in llama-server.

        What is not explained here is as for `create_completion`: parameters, returned values and errors.

        Parameters
        ----------
        messages : sequence of ChatMessage
            ``{"role": "user", "content": "..."}`` and so on, oldest first. What an earlier turn stored is
            reused. Names of special tokens in them are text, unless `parse_special`.
        response_format : mapping or None
            ``{"type": "json_object"}``, with a JSON schema as ``"schema"`` or not, or OpenAI's
            ``{"type": "json_schema", "json_schema": {"schema": ...}}``: the answer is such a text.
        tools : sequence of ChatTool or None
            Functions that the answer may ask to be called: its ``tool_calls``, with ``finish_reason``
            ``"tool_calls"``. A result is a message of the role ``"tool"``.
        tool_choice : {"auto", "none", "required"}, mapping or None
            Whether a call may come, or must, or ``{"type": "function", "function": {"name": ...}}``: of this
            tool. ``None``: ``"auto"``.
        parallel_tool_calls : bool or None
            Whether an answer may have more than one call, where the format can tell; ``None``: if the
            template has a way to write several.
        reasoning_format : {"auto", "none"}
            ``"auto"``: what a model thinks before it answers is ``reasoning_content``; ``"none"``: it stays
            in the content.
        chat_template_kwargs : mapping or None
            Variables for the template, such as ``{"enable_thinking": False}``.
        logprobs, top_logprobs : bool, int or None
            Log probabilities of the tokens, and of so many of the most likely ones at each.

        Raises
        ------
        ValueError
            Also when the template refuses the messages or has no place for `tools`, or `response_format` is
            none.
        """
        schema = response_schema(response_format) if response_format is not None else None
        for name, value in (("response_format", schema), ("tools", tools)):
            if grammar is not None and value:
                raise ValueError(f"grammar and {name} are both given: use one of them")
        check_int("top_logprobs", top_logprobs, 0, self.n_vocab())
        prompt = self._render(
            messages,
            json_schema=schema,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            reasoning_format=reasoning_format,
            chat_template_kwargs=chat_template_kwargs,
        )
        pieces = self._generate(
            prompt.tokenize(self._model, self.parse_special),
            chat=prompt,
            n_logprobs=(top_logprobs or 0) if logprobs else None,
            logits_processor=logits_processor,
            stopping_criteria=None,
            grammar=grammar,
            max_tokens=max_tokens,
            stop=stop,
            more_stops=prompt.additional_stops,
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
            typical_p=typical_p,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            logit_bias=logit_bias,
        )
        answer = _core.ChatAnswer(prompt)
        chunks = chat_chunks(model or self.model_path, pieces, self._token_bytes, answer, live=stream)
        if stream:
            return chunks
        with self._computing():
            return join_chat(chunks)

    def _token_bytes(self, token: int) -> bytes:
        return self._model.token_to_piece(token, True)

    def _infill_tokens(self, prompt: str | Sequence[int], suffix: str) -> list[int]:
        """A prefix, a suffix, and the token after which what is between them comes."""
        if not isinstance(suffix, str):
            raise TypeError(f"suffix = {suffix!r} is not a str")
        before, after, between = self._model.tokens_fim()
        if min(before, after, between) < 0:
            raise ValueError("suffix has no use: this model has no tokens for what is before and after a gap")
        tokens = (
            self.tokenize(prompt, add_bos=False)
            if isinstance(prompt, str)
            else as_tokens(prompt, self._model.n_vocab())
        )
        return [before, *tokens, after, *self.tokenize(suffix, add_bos=False), between]

    def _prompt_tokens(self, prompt: str | Sequence[int]) -> list[int]:
        if not isinstance(prompt, str):
            return as_tokens(prompt, self._model.n_vocab())
        bos = self._model.token_bos()
        # an empty text is a fair prompt for a model that can begin with BOS
        return self.tokenize(prompt, special=True) or ([bos] if bos >= 0 else [])
