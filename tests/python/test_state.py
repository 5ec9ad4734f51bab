"""States in memory: what follows is the same, bit for bit; what does not fit changes nothing."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_gguf
import tiny_models
from conftest import SMALL
from infllm_cpp import InfLLMConfig, Llama, LlamaState

TEXT = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


def make(path: Path, infllm: InfLLMConfig | None = SMALL, **options: Any) -> Llama:
    return Llama(path, **{"n_ctx": 2048, "n_batch": 128, "infllm": infllm, **options})


def greedy(llm: Llama, n: int = 32) -> tuple[list[int], list[np.ndarray]]:
    """The next tokens after token 1, and the logits before each."""
    tokens, logits = [1], []
    for _ in range(n):
        llm.eval(tokens[-1:])
        logits.append(llm.logits)
        tokens.append(int(np.argmax(logits[-1])))
    return tokens, logits


def assert_same(
    got: tuple[list[int], list[np.ndarray]], expected: tuple[list[int], list[np.ndarray]]
) -> None:
    assert got[0] == expected[0]
    assert np.array_equal(got[1], expected[1])


@pytest.mark.parametrize("n_tokens", [100, 1200])  # all of it is resident, or not
@pytest.mark.parametrize(
    ("position", "repr_topk"), [("true", 4), ("infllm", 4), ("true", None), ("infllm", None), (None, None)]
)
def test_the_next_tokens_are_the_same(
    first_layers_path: Path, n_tokens: int, position: str | None, repr_topk: int | None
) -> None:
    changes = {"position": position, "repr_topk": repr_topk}
    config = InfLLMConfig(**{**SMALL.__dict__, **changes}) if position else None
    with make(first_layers_path, config, seed=7) as llm:
        tokens = (llm.tokenize(TEXT) * 100)[:n_tokens]
        llm.prefill(tokens)
        state = llm.save_state()
        expected = greedy(llm)
        assert state.n_tokens == n_tokens
        assert state.input_ids.tolist() == tokens
        assert state.llama_state_size == len(state.llama_state)

        # back, again and again: it stays as it is
        for _ in range(2):
            llm.load_state(state)
            assert llm.tokens == tokens
            assert_same(greedy(llm), expected)
    state = pickle.loads(pickle.dumps(state))
    with make(first_layers_path, config, seed=9) as other:
        other.eval([5, 6, 7])
        other.load_state(state)
        assert_same(greedy(other), expected)
        assert other._seed == 7

        # a prompt is not read again, and what is removed can be
        other.load_state(state)
        assert other.prefill(tokens) >= n_tokens - 128
        other.truncate(n_tokens - 20)
        assert other.prefill(tokens) > 0
        got = greedy(other)
        if repr_topk is None:
            assert_same(got, expected)
        else:  # sums of queries remember what was removed (docs/architecture.md)
            assert got[0] == expected[0]


def test_a_context_that_follows_its_text(first_layers_path: Path) -> None:
    options: dict[str, Any] = {
        "infllm": InfLLMConfig(**{**SMALL.__dict__, "position": "true"}),
        "kv_overrides": {"llama.context_length": 512},
        "n_ctx": 0,
    }
    with make(first_layers_path, **options) as llm:
        states, expected = [], []
        for n_tokens in (100, 900):
            llm.reset()
            llm.prefill((llm.tokenize(TEXT) * 60)[:n_tokens])
            states.append(llm.save_state())
            expected.append(greedy(llm, 4))
        for i in (0, 1, 0):
            llm.load_state(states[i])
            assert_same(greedy(llm, 4), expected[i])
    with make(first_layers_path, **options) as other:
        other.load_state(states[1])
        assert_same(greedy(other, 4), expected[1])


@pytest.mark.parametrize("arch", ["gemma3", "deepseek2", "hybrid"])
@pytest.mark.parametrize("infllm", [SMALL, None])
def test_other_architectures(tmp_path: Path, arch: str, infllm: InfLLMConfig | None) -> None:
    path = tmp_path / "model.gguf"
    if arch == "hybrid":
        shape = make_gguf.SHAPES["small-hybrid"]
        make_gguf.write(shape, arch, path, make_gguf.gguf.GGMLQuantizationType.F16, seed=0)
    else:
        tiny_models.write(arch, path, n_layer=6 if arch == "gemma3" else 2)
    options: dict[str, Any] = {"n_ctx": 1000}
    if infllm:
        infllm = InfLLMConfig(n_init=32, n_local=128, block_size=32, topk=4, n_score=16)
    with make(path, infllm, **options) as llm:
        llm.prefill(list(range(3, 300)) * 3)
        state = llm.save_state()
        expected = greedy(llm, 8)
    with make(path, infllm, **options) as other:
        other.eval(list(range(3, 90)))
        before = other.save_state()
        kept = greedy(other, 4)
        other.load_state(before)
        damaged = replace(state, llama_state=state.llama_state[: len(state.llama_state) // 2])
        with pytest.raises(ValueError, match="state"):
            other.load_state(damaged)
        assert_same(greedy(other, 4), kept)
        other.load_state(state)
        got = greedy(other, 8)
        if arch == "gemma3":
            # upstream's window may lie in other cells then, and is summed up in another order
            np.testing.assert_allclose(got[1], expected[1], atol=1e-4)
        else:
            assert_same(got, expected)


@pytest.mark.parametrize("infllm", [SMALL, None])
def test_what_does_not_fit_is_refused(
    model_path: Path, first_layers_path: Path, infllm: InfLLMConfig | None
) -> None:
    with make(first_layers_path, infllm) as llm:
        llm.prefill((llm.tokenize(TEXT) * 60)[:1000])
        state = llm.save_state()
        expected = greedy(llm, 4)
    with make(model_path, infllm) as other, pytest.raises(ValueError, match="another model"):
        other.load_state(state)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"n_ctx": 768}, "1000 tokens, more than n_ctx = 768"),
        ({"type_k": "q8_0"}, "type_k"),
        ({"rope_freq_scale": 0.5}, "rope_freq_scale"),
        (
            {"kv_overrides": {"llama.context_length": 4096}},
            r"kv_overrides = \{'llama.context_length': 4096\}",
        ),
        ({"infllm": None if infllm else SMALL}, "the InfLLM memory, this Llama is"),
    ]
    if infllm:
        smaller = InfLLMConfig(**{**SMALL.__dict__, "block_size": 16})
        cases.append(({"infllm": smaller}, "block_size: 32 in the state, 16 in this context"))
    else:
        cases.append(({"flash_attn": False}, "does not fit this context"))
    for options, message in cases:
        with make(first_layers_path, **{"infllm": infllm, **options}) as other:
            other.eval([5, 6, 7])
            other.eval([8])
            kept = greedy(other, 2)
            other.truncate(4)
            with pytest.raises(ValueError, match=message):
                other.load_state(state)
            assert other.tokens == [5, 6, 7, 8]
            assert_same(greedy(other, 2), kept)

    with make(first_layers_path, infllm) as llm:
        llm.eval([5, 6, 7])
        with pytest.raises(TypeError, match="is not what save_state"):
            llm.load_state(state.llama_state)  # type: ignore[arg-type]
        for cut in (0, 10, len(state.llama_state) - 1):
            with pytest.raises(ValueError, match="state"):
                llm.load_state(replace(state, llama_state=state.llama_state[:cut]))
        with pytest.raises(ValueError, match="damaged"):
            llm.load_state(replace(state, n_tokens=999, input_ids=state.input_ids[:999]))
        assert llm.tokens == [5, 6, 7]
        llm.load_state(copy.deepcopy(state))
        assert_same(greedy(llm, 4), expected)


def test_nothing_stored(first_layers_path: Path) -> None:
    for infllm in (SMALL, None):
        with make(first_layers_path, infllm) as llm:
            state = llm.save_state()
            assert isinstance(state, LlamaState)
            assert repr(state) == f"LlamaState(n_tokens=0, llama_state_size={state.llama_state_size})"
            expected = greedy(llm, 4)
            llm.load_state(state)
            assert llm.n_tokens == 0
            assert_same(greedy(llm, 4), expected)
