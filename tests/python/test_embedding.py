"""Embeddings: those of llama-cpp-python, in its shapes; what cannot have them is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import theirs
import tiny_models
from conftest import SMALL
from infllm_cpp import Llama

TEXTS = ["The grass is green.", "The sky", "Here we go. There and back again. " * 8]


def make(path: Path, **options: Any) -> Llama:
    options = {"n_ctx": 512, "n_batch": 128, "flash_attn": False, "infllm": None, **options}
    return Llama(path, embedding=True, **options)


def assert_as_theirs(llm: Llama, path: Path, texts: list[str], pooling: int) -> None:
    theirs_too = theirs.embed(path, texts, n_ctx=512, n_batch=128, n_ubatch=128, pooling_type=pooling)
    vectors, n_tokens = llm.embed(texts, return_count=True)
    assert n_tokens == theirs_too["n_tokens"]
    for vector, other in zip(vectors, theirs_too["vectors"], strict=True):
        np.testing.assert_allclose(vector, other, atol=1e-4)


@pytest.fixture(scope="module")
def bert_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "bert.gguf"
    tiny_models.write_bert(path, gguf.PoolingType.CLS)
    return path


def at_once(pooling: int) -> list[list[str]]:
    # of several texts at once llama-cpp-python takes the rows of tokens from wrong places
    return [[text] for text in TEXTS] if pooling == 0 else [TEXTS]


@pytest.mark.parametrize("pooling", [0, 1, 3])
def test_those_of_llama_cpp_python(model_path: Path, pooling: int) -> None:
    with make(model_path, pooling_type=pooling) as llm:
        assert llm.pooling_type() == pooling
        for texts in at_once(pooling):
            assert_as_theirs(llm, model_path, texts, pooling)

        alone = llm.embed(TEXTS[0])
        assert llm.embed(TEXTS[0]) == alone  # the same call gives the same answer
        unit = np.array(llm.embed(TEXTS[0], normalize=True))
        np.testing.assert_allclose(np.linalg.norm(unit, axis=-1), 1, atol=1e-6)
        np.testing.assert_allclose(unit * np.linalg.norm(alone, axis=-1, keepdims=True), alone, rtol=1e-6)


@pytest.mark.parametrize("pooling", [-1, 0, 1, 2])
def test_an_encoder(bert_path: Path, pooling: int) -> None:
    with make(bert_path, pooling_type=pooling) as llm:
        assert llm.pooling_type() == (2 if pooling == -1 else pooling)
        for texts in at_once(pooling):
            assert_as_theirs(llm, bert_path, texts, pooling)
        # several texts in one batch do not see each other
        for vector, text in zip(llm.embed(TEXTS), TEXTS, strict=True):
            np.testing.assert_allclose(vector, llm.embed(text), atol=1e-5)
    # a token sees those after it, so that CLS is of the whole text, which a decoder's first token is not
    with make(bert_path, pooling_type="cls") as llm:
        a, b = (np.array(llm.embed(text)) for text in ("The grass is green", "The grass is brown"))
        assert np.abs(a - b).max() > 1e-3


def test_attention_to_what_follows(model_path: Path) -> None:
    firsts = {}
    for attention in ("causal", "non-causal", None):
        with make(model_path, pooling_type="none", attention_type=attention) as llm:
            firsts[attention] = [
                np.array(llm.embed(text)[0]) for text in ("The grass is green", "The sky is")
            ]
    np.testing.assert_allclose(firsts["causal"][0], firsts["causal"][1], atol=2e-3)
    np.testing.assert_allclose(firsts[None][0], firsts["causal"][0], atol=1e-4)
    assert np.abs(firsts["non-causal"][0] - firsts["non-causal"][1]).max() > 0.1


def test_more_texts_than_a_batch_has_room_for(bert_path: Path) -> None:
    texts = [f"This is text number {i}." * (i % 5 + 1) for i in range(200)]
    with make(bert_path, pooling_type="mean") as llm:
        together = llm.embed(texts)
        for i in (0, 63, 64, 65, 128, 199):
            np.testing.assert_allclose(together[i], llm.embed(texts[i]), atol=1e-4)
        assert llm.embed([]) == []
        assert np.shape(llm.embed(["a"])) == (1, llm.n_embd())


def test_the_shape_of_openai(bert_path: Path) -> None:
    with make(bert_path) as llm:
        answer = llm.create_embedding(["The grass", "is green"], model="bert")
        n_tokens = sum(len(llm.tokenize(text)) for text in ("The grass", "is green"))
        assert answer["object"] == "list"
        assert answer["model"] == "bert"
        assert answer["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        assert [item["index"] for item in answer["data"]] == [0, 1]
        assert [item["object"] for item in answer["data"]] == ["embedding"] * 2
        assert [item["embedding"] for item in answer["data"]] == llm.embed(["The grass", "is green"])
        one = llm.create_embedding("The grass")
        assert one["model"] == str(bert_path)
        assert len(one["data"]) == 1


def test_long_texts(model_path: Path, bert_path: Path) -> None:
    text = "The grass is green. " * 200
    for path, n_max in ((model_path, 128), (bert_path, 128)):
        with make(path, pooling_type="mean") as llm:
            vector, n_tokens = llm.embed(text, return_count=True)
            assert n_tokens == n_max
            with pytest.raises(ValueError, match="more than n_batch = 128: raise n_batch"):
                llm.embed(text, truncate=False)
            with pytest.raises(ValueError, match=r"input\[1\]"):
                llm.embed(["a", text], truncate=False)
            assert np.isfinite(vector).all()
    with make(bert_path, n_ctx=0, n_batch=8192) as llm:
        assert llm.embed(text, return_count=True)[1] == tiny_models.N_CTX_TRAIN
    with pytest.raises(ValueError, match="more than the model has embeddings of positions for: 1024"):
        make(bert_path, n_ctx=8192)
    with make(model_path, n_ctx=2048, n_batch=1024, pooling_type="last") as llm:
        assert llm.embed(text, return_count=True)[1] == len(llm.tokenize(text)) <= 1024


def test_nothing_else_is_computed(model_path: Path, bert_path: Path) -> None:
    for path in (model_path, bert_path):
        with make(path) as llm:
            for use in (
                lambda llm=llm: llm("Hi"),
                lambda llm=llm: llm.eval([1]),
                lambda llm=llm: llm.prefill([1, 2]),
                lambda llm=llm: llm.save_state(),
            ):
                with pytest.raises(RuntimeError, match="made with embedding=True"):
                    use()
            for wrong in ([1, 2], None, b"Hi", 5):
                with pytest.raises(TypeError, match="is neither a str nor a sequence of them"):
                    llm.embed(wrong)  # type: ignore[call-overload]
            expected = llm.embed("Hi")
            with llm.fork() as fork:
                assert fork.embed("Hi") == expected
        with pytest.raises(RuntimeError, match="closed"):
            llm.embed("Hi")


def test_what_is_refused(model_path: Path, bert_path: Path, llm: Llama) -> None:
    with pytest.raises(RuntimeError, match="make one with embedding=True"):
        llm.embed("Hi")
    with pytest.raises(ValueError, match="use infllm=None"):
        Llama(model_path, embedding=True, infllm=SMALL)
    with pytest.raises(ValueError, match="pooling_type is for embeddings"):
        Llama(model_path, pooling_type="mean")
    with pytest.raises(ValueError, match="attention_type is for embeddings"):
        Llama(model_path, attention_type="non-causal")
    for value in ("rank", 4):
        with pytest.raises(ValueError, match="scores pairs of texts"):
            make(model_path, pooling_type=value)
    with pytest.raises(ValueError, match="pooling_type = 'sum' is unknown: use one of none, mean"):
        make(model_path, pooling_type="sum")
    with pytest.raises(TypeError, match=r"pooling_type = 1\.0 is neither"):
        make(model_path, pooling_type=1.0)
    with pytest.raises(ValueError, match="not a decoder-only model"):
        Llama(bert_path, infllm=None)
    with pytest.raises(ValueError, match="attention is not causal"):
        Llama(bert_path)


def test_a_text_without_tokens(model_path: Path) -> None:
    with make(model_path) as llm:
        assert llm.tokenize("") == []
        with pytest.raises(ValueError, match=r"input\[1\] has no tokens"):
            llm.embed(["a", ""])


def test_a_reranker_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rank.gguf"
    tiny_models.write_bert(path, gguf.PoolingType.RANK)
    with pytest.raises(ValueError, match="scores pairs of texts"):
        make(path)
    with make(path, pooling_type="mean") as llm:
        assert len(llm.embed("Hi")) == llm.n_embd()
