"""A second chat on the same document: what is stored is shared, and each goes its own way."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from conftest import SMALL
from infllm_cpp import InfLLMConfig, Llama

TEXT = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


def logits_after(llm: Llama, tokens: list[int]) -> np.ndarray:
    llm.eval(tokens)
    for token in (7, 8, 9):
        llm.eval([token])
    return llm.logits


@pytest.mark.parametrize("position", ["true", "infllm"])
def test_both_go_on_on_their_own(first_layers_path: Path, position: str) -> None:
    config = InfLLMConfig(**{**SMALL.__dict__, "position": position})
    with Llama(first_layers_path, n_ctx=2048, n_batch=128, infllm=config) as llm:
        document = (llm.tokenize(TEXT) * 60)[:1200]
        questions = [llm.tokenize(f"{text} Which of them?") for text in ("What is green?", "And blue?")]
        expected = []
        for question in questions:
            llm.reset()
            llm.prefill(document)
            expected.append(logits_after(llm, question))

        llm.reset()
        llm.prefill(document)
        fork = llm.fork()
        assert fork.tokens == document
        stats = fork.stats()
        assert stats is not None
        assert 0 < stats.bytes_store == stats.bytes_store_file  # none of it is the fork's own
        third = fork.fork()

        got: list[np.ndarray | None] = [None, None]

        def ask(i: int, of: Llama) -> None:
            got[i] = logits_after(of, questions[i])

        threads = [threading.Thread(target=ask, args=(i, of)) for i, of in enumerate((llm, fork))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert np.array_equal(got[0], expected[0])
        assert np.array_equal(got[1], expected[1])

    # what was shared outlives who read it, and an edit is one's own
    fork.truncate(600)
    with third:
        assert np.array_equal(logits_after(third, questions[1]), expected[1])
    assert fork.prefill(document) > 0
    assert np.array_equal(logits_after(fork, questions[0]), expected[0])
    fork.close()
    with pytest.raises(RuntimeError, match="closed"):
        fork.fork()


@pytest.mark.parametrize("n_ctx", [0, 1024])
def test_contexts_without_anything_stored(first_layers_path: Path, n_ctx: int) -> None:
    for infllm in (SMALL, None):
        with Llama(first_layers_path, n_ctx=n_ctx, infllm=infllm) as llm:
            assert llm.fork().n_tokens == 0
            llm.eval([1, 2, 3])
            with llm.fork() as fork:
                fork.eval([4])
                llm.eval([4])
                assert np.array_equal(fork.logits, llm.logits)
                assert fork.n_ctx() == llm.n_ctx()
