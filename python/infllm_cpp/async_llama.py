"""A `Llama` for asyncio: calls that can be awaited, streams for ``async for``, and cancelling that stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from .llama import Llama
from .types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    Completion,
    CompletionChunk,
    CreateEmbeddingResponse,
)

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

_T_ASK_AGAIN = 0.05  # seconds: a call that has not begun yet does not hear that it is to stop


class AsyncLlama:
    """Completions that leave the event loop free.

    One call computes at a time, in a thread of its own; the others wait. A call or a stream that is cancelled
    (`asyncio.Task.cancel`, `asyncio.timeout`, a client that goes) stops computing at once, and what it had
    stored stays. A stream that is left early must be closed, as `contextlib.aclosing` does, for the next call
    to begin.

    Parameters
    ----------
    *args, **options
        Of `Llama`, which is loaded here; or one that is there already, as ``llm``.

    Examples
    --------
    >>> async with AsyncLlama("model.gguf") as llm:
    ...     answer = await llm.create_completion("The capital of France is", max_tokens=8)
    ...     async for chunk in await llm.create_completion("Once", stream=True):
    ...         print(chunk["choices"][0]["text"], end="")
    """

    def __init__(self, *args: Any, llm: Llama | None = None, **options: Any) -> None:
        if llm is not None and (args or options):
            raise TypeError("llm is given, and parameters of another one: give one of them")
        self.llm = Llama(*args, **options) if llm is None else llm
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="infllm")

    @overload
    async def create_completion(
        self, prompt: str | Sequence[int], *, stream: Literal[False] = ..., **options: Any
    ) -> Completion: ...

    @overload
    async def create_completion(
        self, prompt: str | Sequence[int], *, stream: Literal[True], **options: Any
    ) -> AsyncIterator[CompletionChunk]: ...

    async def create_completion(
        self, prompt: str | Sequence[int], *, stream: bool = False, **options: Any
    ) -> Completion | AsyncIterator[CompletionChunk]:
        """Continue a text, see `Llama.create_completion`; errors are the same."""
        if stream:
            return self._stream(lambda: self.llm.create_completion(prompt, stream=True, **options))
        return await self._call(lambda: self.llm.create_completion(prompt, **options))

    @overload
    async def create_chat_completion(
        self, messages: Sequence[ChatMessage], *, stream: Literal[False] = ..., **options: Any
    ) -> ChatCompletion: ...

    @overload
    async def create_chat_completion(
        self, messages: Sequence[ChatMessage], *, stream: Literal[True], **options: Any
    ) -> AsyncIterator[ChatCompletionChunk]: ...

    async def create_chat_completion(
        self, messages: Sequence[ChatMessage], *, stream: bool = False, **options: Any
    ) -> ChatCompletion | AsyncIterator[ChatCompletionChunk]:
        """Answer the last message of a chat, see `Llama.create_chat_completion`; errors are the same."""
        if stream:
            return self._stream(lambda: self.llm.create_chat_completion(messages, stream=True, **options))
        return await self._call(lambda: self.llm.create_chat_completion(messages, **options))

    async def create_embedding(self, input: str | Sequence[str], **options: Any) -> CreateEmbeddingResponse:
        """Embeddings of texts, see `Llama.create_embedding`; errors are the same."""
        return await self._call(lambda: self.llm.create_embedding(input, **options))

    async def prefill(self, tokens: Sequence[int], **options: Any) -> int:
        """Read a text, see `Llama.prefill`."""
        return await self._call(lambda: self.llm.prefill(tokens, **options))

    async def close(self) -> None:
        """Free the model and the context, after the call that computes."""
        async with self._turn:
            self.llm.close()
            self._thread.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _call(self, f: Callable[[], T]) -> T:
        async with self._turn:
            return await self._compute(f)

    async def _stream(self, make: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        async with self._turn:
            pieces = await self._compute(make)  # tokens, a grammar: not in the loop
            end = object()
            while (piece := await self._compute(lambda: next(pieces, end))) is not end:
                yield piece  # type: ignore[misc]

    async def _compute(self, f: Callable[[], T]) -> T:
        """Run f in the thread; when cancelled, interrupt it and wait for its end, which is soon."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, f)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                self.llm.interrupt()
                await asyncio.wait([future], timeout=_T_ASK_AGAIN)
            future.exception()  # that it was interrupted is known
            raise
