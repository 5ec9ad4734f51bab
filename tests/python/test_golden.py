"""Golden texts at temperature 0: what the demo model answered when this was written (2026-11-21).

They are chosen so that the best token leads by at least 0.6 everywhere: no change of kernels or of rounding
changes them, a change of the method does.
"""

from __future__ import annotations

import pytest

from infllm_cpp import Llama
from infllm_cpp.passkey import make_passkey_prompt

FITS = ("The alphabet: A B C D E", 12, " F G H I K L M N O P Q R")


def test_while_everything_fits(llm: Llama) -> None:
    prompt, n_tokens, text = FITS
    assert llm(prompt, max_tokens=n_tokens, temperature=0)["choices"][0]["text"] == text


@pytest.mark.parametrize("key", ["60494", "27611", "17412"])
def test_with_most_of_the_text_in_the_store(llm: Llama, key: str) -> None:
    seed = ["60494", "27611", "17412"].index(key)
    tokens, _ = make_passkey_prompt(llm.tokenize, 1000, depth=0.3, seed=seed)
    text = llm(tokens, max_tokens=20, temperature=0)["choices"][0]["text"]
    assert text == f" {key}. Remember it. {key} is the pass key"
    stats = llm.stats()
    assert stats is not None and stats.n_page_in > 0
