"""`AsyncLlama`: the loop stays free, calls take turns, and cancelling stops the computation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import SMALL
from infllm_cpp import AsyncLlama, Llama

OPTIONS: dict[str, Any] = {"max_tokens": 12, "temperature": 0}


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[AsyncLlama]:
    async with AsyncLlama(path, n_ctx=4096, n_batch=128, infllm=SMALL) as llm:
        yield llm


def run(path: Path, f: Callable[[AsyncLlama], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened(path) as llm:
            await f(llm)

    asyncio.run(main())


def test_answers_are_those_of_a_llama(first_layers_path: Path) -> None:
    other = Llama(first_layers_path, n_ctx=4096, n_batch=128, infllm=SMALL)

    async def use(llm: AsyncLlama) -> None:
        prompts = ["The sky is", "The grass is", "Once upon a time"]
        answers = await asyncio.gather(*(llm.create_completion(p, **OPTIONS) for p in prompts))
        for prompt, answer in zip(prompts, answers, strict=True):
            expected = other(prompt, **OPTIONS)["choices"][0]
            assert answer["choices"][0] == expected
            pieces = [c async for c in await llm.create_completion(prompt, stream=True, **OPTIONS)]
            assert "".join(piece["choices"][0]["text"] for piece in pieces) == expected["text"]
        messages: Any = [{"role": "user", "content": "Hello"}]
        chat = await llm.create_chat_completion(messages, **OPTIONS)
        streamed = [c async for c in await llm.create_chat_completion(messages, stream=True, **OPTIONS)]
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in streamed)
        assert text == chat["choices"][0]["message"]["content"]
        with pytest.raises(ValueError, match="top_p = 2"):
            await llm.create_completion("x", top_p=2)

    with other:
        run(first_layers_path, use)


def test_the_loop_is_free_meanwhile(first_layers_path: Path) -> None:
    async def use(llm: AsyncLlama) -> None:
        reading = asyncio.create_task(llm.prefill(llm.llm.tokenize("The grass is green. " * 600)))
        n_ticks = 0
        while not reading.done():
            await asyncio.sleep(0.01)
            n_ticks += 1
        assert await reading == 0  # nothing was stored
        assert llm.llm.n_tokens > 2000
        assert n_ticks > 5

    run(first_layers_path, use)


def test_cancelling_stops_and_the_next_call_goes_on(first_layers_path: Path) -> None:
    async def use(llm: AsyncLlama) -> None:
        tokens = llm.llm.tokenize("The grass is green. " * 600)
        for delay in (0.0, 0.2):
            llm.llm.reset()
            task = asyncio.create_task(llm.prefill(tokens))
            await asyncio.sleep(delay)
            waiting = asyncio.create_task(llm.create_completion("The sky is", **OPTIONS))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert llm.llm.n_tokens < len(tokens)
            assert (await waiting)["usage"]["completion_tokens"] == 12

        stream = await llm.create_completion("Once upon a time", stream=True, max_tokens=1000)
        async with contextlib.aclosing(stream) as pieces:  # type: ignore[type-var]
            async for _ in pieces:
                break
        assert (await llm.create_completion("The sky is", **OPTIONS))["usage"]["completion_tokens"] == 12

    run(first_layers_path, use)


def test_one_that_is_there_already(first_layers_path: Path) -> None:
    with pytest.raises(TypeError, match="llm is given"):
        AsyncLlama(first_layers_path, llm=object())  # type: ignore[arg-type]


def test_embeddings(first_layers_path: Path) -> None:
    options: dict[str, Any] = {"n_ctx": 256, "infllm": None, "embedding": True}

    async def main() -> None:
        async with AsyncLlama(first_layers_path, **options) as llm:
            one, other = await asyncio.gather(llm.create_embedding("a"), llm.create_embedding(["b", "c"]))
            assert [len(one["data"]), len(other["data"])] == [1, 2]
            assert one["data"][0] == llm.llm.create_embedding("a")["data"][0]

    asyncio.run(main())
