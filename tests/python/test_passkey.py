"""The passkey prompt."""

from __future__ import annotations

import pytest

from infllm_cpp import Llama
from infllm_cpp.passkey import QUESTION, is_right, make_passkey_prompt


@pytest.mark.parametrize("n_tokens", [200, 1000, 5000])
def test_the_prompt_is_as_long_as_asked_for(llm: Llama, n_tokens: int) -> None:
    tokens, _ = make_passkey_prompt(llm.tokenize, n_tokens)
    assert n_tokens - 30 < len(tokens) <= n_tokens


@pytest.mark.parametrize("depth", [0.0, 0.25, 1.0])
def test_the_key_is_at_its_depth_and_twice_in_the_text(llm: Llama, depth: float) -> None:
    tokens, key = make_passkey_prompt(llm.tokenize, 4000, depth)
    text = llm.detokenize(tokens).decode()
    assert text.count(key) == 2
    assert text.endswith(QUESTION)
    assert abs(text.index(key) / len(text) - depth) < 0.05


def test_the_seed_decides_the_key(llm: Llama) -> None:
    keys = [make_passkey_prompt(llm.tokenize, 200, seed=seed)[1] for seed in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2]


def test_bad_arguments(llm: Llama) -> None:
    with pytest.raises(ValueError, match="depth = 2"):
        make_passkey_prompt(llm.tokenize, 200, depth=2)
    with pytest.raises(ValueError, match="n_tokens = 10 is too small"):
        make_passkey_prompt(llm.tokenize, 10)


def test_an_answer_is_right_only_if_it_begins_with_the_key() -> None:
    assert is_right(" 12345. Remember", "12345")
    assert is_right(" Ramen.", "ramen")
    assert not is_right("not 12345", "12345")
