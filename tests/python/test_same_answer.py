"""The same call gives the same answer, bit for bit: again, after others, interrupted, with any n_batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf_copy import copy_gguf

from conftest import SMALL
from infllm_cpp import InfLLMConfig, Llama, TraceEvent
from infllm_cpp._stored import StoredTokens

N_UBATCH = 128
CONFIGS: dict[str, InfLLMConfig | None] = {
    "infllm": dataclasses.replace(SMALL, position="infllm"),
    "true": SMALL,
    "more-slots": dataclasses.replace(SMALL, topk=4),
    "plain": None,
}


N_LAYER = 4  # two that search, and those that follow them


def make(path: Path, config: InfLLMConfig | None, **options: object) -> Llama:
    return Llama(
        path,
        **{"n_ctx": 1280, "n_batch": 256, "n_ubatch": N_UBATCH, "infllm": config, **options},  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def path(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "layers.gguf"
    copy_gguf(model_path, path, n_layer=N_LAYER)
    return path


@pytest.fixture(params=CONFIGS, scope="module")
def config(request: pytest.FixtureRequest) -> InfLLMConfig | None:
    return CONFIGS[request.param]


@pytest.fixture(scope="module")
def llm(path: Path, config: InfLLMConfig | None) -> Iterator[Llama]:
    with make(path, config) as llm:
        yield llm


@pytest.fixture(scope="module")
def document(llm: Llama) -> list[int]:
    """More tokens than are resident."""
    words = [f"Line {i} says {i * 7919 % 1000}.\n" for i in range(400)]
    return llm.tokenize("".join(words))[:900]


class Call:
    """A prompt, and what it gives: logits after it and after further tokens, and the blocks selected."""

    def __init__(self, prompt: list[int]) -> None:
        self.prompt = prompt

    def __call__(self, llm: Llama) -> tuple[np.ndarray, list[list[int]]]:
        events: list[TraceEvent] = []
        llm.set_trace(events.append)
        llm.prefill(self.prompt)
        logits = [llm.logits]
        n_question = len(events)
        for token in (300, 301, 302):
            llm.eval([token])
            logits.append(llm.logits)
        llm.set_trace(None)
        return np.array(logits), [e.selected.tolist() for e in events[n_question - N_LAYER :]]


def assert_same(
    got: tuple[np.ndarray, list[list[int]]], expected: tuple[np.ndarray, list[list[int]]]
) -> None:
    np.testing.assert_array_equal(got[0], expected[0])
    assert got[1] == expected[1]


@pytest.fixture(scope="module")
def calls(llm: Llama, document: list[int]) -> list[Call]:
    """Questions of different lengths about one text, one that ends in it, and another text."""
    questions = ["\nWhat does line 7 say?", "\nWhat is it that line 12 says, and line 100?\nAnswer:", ""]
    texts = [document + llm.tokenize(q, add_bos=False) for q in questions]
    return [Call(text) for text in [*texts, document[:200] + texts[1][500:]]]


def test_again_and_after_other_calls(llm: Llama, calls: list[Call]) -> None:
    expected = []
    for call in calls:
        llm.reset()
        expected.append(call(llm))
    for i in (0, 1, 0, 2, 3, 1):
        assert_same(calls[i](llm), expected[i])


def test_what_is_stored_is_read_no_more_than_needed(llm: Llama, calls: list[Call]) -> None:
    llm.reset()
    n = len(calls[0].prompt)
    calls[0](llm)
    assert llm.prefill(calls[0].prompt) == n - 32  # the question alone
    assert llm.prefill(calls[1].prompt) >= 900 - 32 - N_UBATCH


@pytest.mark.parametrize("after", [1, 3])
def test_interrupted_and_resumed(llm: Llama, calls: list[Call], after: int) -> None:
    llm.reset()
    expected = calls[1](llm)
    llm.reset()

    def interrupt(done: int, total: int) -> None:
        nonlocal after
        after -= 1
        if after == 0:
            llm.interrupt()

    with pytest.raises(InterruptedError):
        llm.prefill(calls[1].prompt, progress=interrupt)
    n_kept = llm.n_tokens
    assert 0 < n_kept < len(calls[1].prompt)
    assert llm.prefill(calls[1].prompt) == n_kept
    assert_same(calls[1](llm), expected)


def test_any_n_batch(path: Path, config: InfLLMConfig | None, llm: Llama, calls: list[Call]) -> None:
    llm.reset()
    expected = calls[1](llm)
    for n_batch in (N_UBATCH, 1280):
        with make(path, config, n_batch=n_batch) as other:
            assert_same(calls[1](other), expected)


def test_sampled_answers(llm: Llama, document: list[int]) -> None:
    answers = [llm(document, max_tokens=12, temperature=0.9, seed=3)["choices"][0]["text"] for _ in range(3)]
    assert answers == answers[:1] * 3


def test_generated_tokens_are_kept(llm: Llama, document: list[int]) -> None:
    """The next turn of a chat: nothing is read again."""
    llm.reset()
    llm.prefill(document)
    for token in range(300, 350):
        llm.eval([token])
    turn = llm.tokens + list(range(400, 450))
    assert llm.prefill(turn) == len(turn) - 50
    logits = llm.logits
    assert llm.prefill(turn) == len(turn) - 32
    np.testing.assert_array_equal(llm.logits, logits)


# -- what can be kept, without a model -------------------------------------------------------------


def ends_of(p0: int, p1: int) -> list[int]:
    """Ubatches of 10 tokens, the last 3 by themselves."""
    last = max(p1 - 3, p0)
    return [*range(p0 // 10 * 10 + 10, last, 10), *([last] if last > p0 else []), p1]


def read(stored: StoredTokens, prompt: list[int], n_read: int | None = None) -> int:
    n_kept, begin = stored.reusable(prompt, 3, ends_of)
    stored.truncate(n_kept)
    stored.begin_text(min(begin, n_kept), len(prompt))
    rest = prompt[n_kept:n_read]
    stored.append(rest, [end for end in ends_of(n_kept, len(prompt)) if end <= n_kept + len(rest)])
    return n_kept


@pytest.mark.parametrize(
    ("stored", "n_read", "prompt", "expected"),
    [
        ("a" * 48, None, "a" * 48, 45),  # the same again: the question
        ("a" * 48, None, "a" * 49, 40),  # longer: from the last ubatch that both have
        ("a" * 48, None, "a" * 44, 40),
        ("a" * 48, None, "a" * 43, 40),  # the question begins at a multiple
        ("a" * 48, None, "a" * 42, 30),
        ("a" * 48, None, "a" * 25 + "b" * 23, 20),
        ("a" * 48, None, "b" * 48, 0),
        ("a" * 48, 30, "a" * 48, 30),  # interrupted
        ("a" * 48, 45, "a" * 60, 40),
        ("a" * 3, None, "a" * 3, 0),
    ],
)
def test_what_a_prompt_can_begin_with(stored: str, n_read: int | None, prompt: str, expected: int) -> None:
    tokens = StoredTokens()
    read(tokens, list(map(ord, stored)), n_read)
    assert read(tokens, list(map(ord, prompt))) == expected
    assert tokens.tokens == list(map(ord, prompt))


def test_generated_tokens_end_a_text() -> None:
    tokens = StoredTokens()
    read(tokens, [1] * 48)
    for _ in range(9):
        tokens.append([2])
    chat = [1] * 48 + [2] * 9 + [3] * 20
    assert read(tokens, chat) == 57
    assert read(tokens, chat) == 74  # the same again
    assert read(tokens, chat[:70]) == 60
    assert read(tokens, chat[:56] + [4] * 9) == 56  # another turn: from where the answers differ
    assert read(tokens, [1] * 48) == 45  # the first turn again
