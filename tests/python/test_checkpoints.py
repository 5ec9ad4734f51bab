"""Recurrent layers and windows: the last turn is read again from a checkpoint, and the answer is the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tiny_models
from infllm_cpp import InfLLMConfig, Llama

CONFIG = {"n_init": 16, "n_local": 64, "block_size": 16, "topk": 4, "max_cached_blocks": 8, "n_score": 16}


@pytest.fixture(scope="module")
def hybrid_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hybrid") / "hybrid.gguf"
    script = Path(__file__).resolve().parents[2] / "scripts" / "make_gguf.py"
    subprocess.run([sys.executable, str(script), "small-hybrid", str(path)], check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def windows_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five layers of six attend to 128 tokens."""
    path = tmp_path_factory.mktemp("windows") / "windows.gguf"
    tiny_models.write("gemma3", path, n_layer=6)
    return path


@pytest.fixture(params=["infllm", "plain"])
def hybrid(request: pytest.FixtureRequest, hybrid_path: Path) -> Iterator[Llama]:
    config = InfLLMConfig(**CONFIG) if request.param == "infllm" else None
    with Llama(str(hybrid_path), n_ctx=1024, n_batch=64, n_ubatch=32, n_threads=1, infllm=config) as llm:
        yield llm


def text(n_tokens: int, seed: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(3, 350, n_tokens)]


def logits_of(llm: Llama, tokens: list[int]) -> np.ndarray:
    """Logits after `tokens`, read from the start."""
    llm.reset()
    llm.prefill(tokens)
    return np.array(llm.logits)


def answer(llm: Llama, n: int) -> list[int]:
    res = []
    for _ in range(n):
        res.append(int(np.argmax(llm.logits)))
        llm.eval(res[-1:])
    return res


def test_the_same_prompt_again_is_not_read_again(hybrid: Llama) -> None:
    prompt = text(500, 1)
    expected = logits_of(hybrid, prompt)
    answer(hybrid, 20)
    n_cached = hybrid.prefill(prompt)
    assert n_cached >= len(prompt) - 64  # all but the question
    assert np.array_equal(hybrid.logits, expected)


def test_an_edited_turn_is_read_from_its_start(hybrid: Llama) -> None:
    first = text(300, 1)
    hybrid.prefill(first)
    history = first + answer(hybrid, 20)
    hybrid.prefill(history + text(150, 2))
    answer(hybrid, 20)

    edited = history + text(10, 2) + text(140, 3)  # begins as before
    n_cached = hybrid.prefill(edited)
    assert n_cached == len(history)
    got = np.array(hybrid.logits)

    # what it is when the turns were read like that at first
    hybrid.reset()
    hybrid.prefill(first)
    assert first + answer(hybrid, 20) == history
    hybrid.prefill(edited)
    assert np.array_equal(hybrid.logits, got)


def test_truncate_goes_back_to_a_checkpoint(hybrid: Llama) -> None:
    hybrid.eval(text(200, 1))
    hybrid.eval(text(100, 2))
    assert hybrid.truncate(250) == 200
    assert hybrid.n_tokens == 200
    assert hybrid.truncate(100) == 0  # none before


def test_a_prompt_that_was_stopped_goes_on_from_where_the_text_began(hybrid: Llama) -> None:
    first, more = text(200, 1), text(400, 2)
    hybrid.eval(first)
    hybrid.eval(more)
    expected = np.array(hybrid.logits)

    hybrid.reset()
    hybrid.eval(first)

    def stop(done: int, total: int) -> None:
        if done >= 128:
            hybrid.interrupt()

    with pytest.raises(InterruptedError):
        hybrid.eval(more, progress=stop)
    n_tokens = hybrid.n_tokens
    assert n_tokens >= len(first)
    hybrid.eval((first + more)[n_tokens:])
    assert np.allclose(hybrid.logits, expected, atol=0.2)


def test_checkpoints_are_few() -> None:
    from infllm_cpp._checkpoints import MAX_COUNT, PASSING_TOKENS, Checkpoints

    class Ctx:
        def needs_checkpoints(self) -> bool:
            return True

        def checkpoint(self) -> bytes:
            return b"state"

    checkpoints = Checkpoints()
    for i in range(1, 20):
        checkpoints.add(Ctx(), 10 * i)  # type: ignore[arg-type]
    assert checkpoints.positions() == [10 * i for i in range(20 - MAX_COUNT, 20)]
    for i in range(1, 6):  # of those within a text the last one is enough
        checkpoints.add(Ctx(), 190 + i * PASSING_TOKENS, passing=True)  # type: ignore[arg-type]
    assert checkpoints.positions()[-2:] == [190, 190 + 5 * PASSING_TOKENS]
    checkpoints.add(Ctx(), 60000)  # type: ignore[arg-type]
    assert checkpoints.positions()[-2:] == [190, 60000]
    checkpoints.forget_after(185)
    assert checkpoints.positions()[-1] == 180


def test_windows_of_plain_llama_cpp_have_the_same_bits(windows_path: Path) -> None:
    tokens = text(800, 0)
    logits = []
    for config in (None, InfLLMConfig(budget="1024 tokens")):
        with Llama(str(windows_path), n_ctx=1024, n_ubatch=32, n_threads=1, infllm=config) as llm:
            logits.append(llm.eval(tokens, all_logits=True))
    np.testing.assert_array_equal(logits[0], logits[1])


@pytest.mark.parametrize("config", [InfLLMConfig(**CONFIG), None], ids=["infllm", "plain"])
def test_a_window_goes_back_as_far_as_it_keeps(windows_path: Path, config: InfLLMConfig | None) -> None:
    first, second, third = text(300, 1), text(400, 2), text(20, 3)
    with Llama(str(windows_path), n_ctx=1024, n_batch=64, n_ubatch=32, n_threads=1, infllm=config) as llm:
        llm.eval(first)
        llm.eval(second)
        assert llm.truncate(690) == 690
        assert llm.truncate(500) == 300  # the 128 tokens before are gone
        logits = llm.eval(third, all_logits=True)

        llm.reset()
        llm.eval(first)
        expected = llm.eval(third, all_logits=True)
    np.testing.assert_allclose(logits, expected, atol=1e-3)
