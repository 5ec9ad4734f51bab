"""A LoRA adapter: in every context of its Llama, and in what sessions and states are compared by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import theirs
import tiny_models
from conftest import N_FIRST_LAYERS, SMALL
from infllm_cpp import InfLLMConfig, Llama

TEXT = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "

SHAPES = {"attn_q": (576, 576), "attn_k": (192, 576), "attn_v": (192, 576), "ffn_down": (576, 1536)}


def shapes(n_layer: int = N_FIRST_LAYERS) -> tiny_models.Shapes:
    return {f"blk.{i}.{name}.weight": shape for i in range(n_layer) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def lora_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "a.gguf"
    tiny_models.write_adapter(path, shapes())
    return path


def logits(path: Path, tokens: list[int], **options: object) -> np.ndarray:
    with Llama(path, n_ctx=1024, n_batch=128, **options) as llm:  # type: ignore[arg-type]
        llm.eval(tokens)
        return llm.logits


def test_logits_are_those_of_llama_cpp_python(first_layers_path: Path, lora_path: Path) -> None:
    with Llama(first_layers_path, n_ctx=256, infllm=None) as llm:
        tokens = (llm.tokenize(TEXT) * 10)[:100]
        plain = llm.eval(tokens, all_logits=True)[-1]
    for scale in (1.0, 0.5):
        expected = theirs.last_logits(
            first_layers_path,
            tokens,
            n_ctx=1024,
            n_batch=128,
            n_ubatch=128,
            flash_attn=True,
            lora_path=str(lora_path),
            lora_scale=scale,
        )
        with Llama(first_layers_path, n_ctx=256, infllm=None, lora_path=lora_path, lora_scale=scale) as llm:
            got = llm.eval(tokens, all_logits=True)[-1]
        assert np.abs(got - plain).max() > 0.1
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_with_the_method_while_all_fits(first_layers_path: Path, lora_path: Path) -> None:
    with Llama(first_layers_path, n_ctx=256, infllm=None) as llm:
        tokens = (llm.tokenize(TEXT) * 10)[:300]
    plain = logits(first_layers_path, tokens, infllm=None)
    adapted = {}
    for scale in (1.0, 0.5, 0.0):
        options = {"lora_path": str(lora_path), "lora_scale": scale}
        adapted[scale] = logits(first_layers_path, tokens, infllm=None, **options)
        assert np.array_equal(logits(first_layers_path, tokens, infllm=SMALL, **options), adapted[scale])
    assert np.array_equal(adapted[0.0], plain)
    assert not np.array_equal(adapted[0.5], adapted[1.0])


def test_forks_and_longer_contexts_have_it(first_layers_path: Path, lora_path: Path) -> None:
    with Llama(first_layers_path, n_ctx=1024, n_batch=128, infllm=SMALL, lora_path=lora_path) as llm:
        tokens = (llm.tokenize(TEXT) * 60)[:900]
        llm.prefill(tokens)
        fork = llm.fork()
        for token in (7, 8, 9):
            llm.eval([token])
        expected = llm.logits
    # it outlives the object that it was loaded by
    with fork:
        for token in (7, 8, 9):
            fork.eval([token])
        assert np.array_equal(fork.logits, expected)

    # a text that outgrows its context is in another one
    options = {
        "n_batch": 128,
        "infllm": InfLLMConfig(**{**SMALL.__dict__, "position": "true"}),
        "kv_overrides": {"llama.context_length": 256},
    }
    got = []
    for lora in (None, lora_path):
        for n_ctx in (0, 2**18):
            with Llama(first_layers_path, n_ctx=n_ctx, lora_path=lora, **options) as llm:  # type: ignore[arg-type]
                assert llm.n_ctx_train() == 256
                llm.eval(tokens)
                got.append(llm.logits)
    assert np.array_equal(got[0], got[1])
    assert np.array_equal(got[2], got[3])
    assert not np.array_equal(got[0], got[2])


def test_sessions_and_states_of_other_adapters_are_refused(
    first_layers_path: Path, lora_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sessions"
    folder.mkdir()
    other_path = tmp_path / "other.gguf"
    tiny_models.write_adapter(other_path, shapes(), seed=1)
    copied = tmp_path / "copy.gguf"
    copied.write_bytes(lora_path.read_bytes())

    def make(**options: object) -> Llama:
        return Llama(first_layers_path, n_ctx=1024, n_batch=128, infllm=SMALL, **options)  # type: ignore[arg-type]

    with make(lora_path=lora_path, lora_scale=0.5) as llm:
        tokens = (llm.tokenize(TEXT) * 60)[:800]
        llm.prefill(tokens)
        llm.save_session(folder / "a.session")
        state = llm.save_state()
        llm.eval([1])
        expected = llm.logits
    for options, message in (
        ({}, r"was saved with lora_path = '.*a.gguf', lora_scale = 0.5, this Llama is without lora_path"),
        ({"lora_path": lora_path}, "lora_scale = 0.5, this Llama is with .*lora_scale = 1.0"),
        ({"lora_path": other_path, "lora_scale": 0.5}, "a.gguf.*this Llama is with .*other.gguf"),
    ):
        with make(session_dir=folder, **options) as llm:
            llm.eval([5, 6, 7])
            with pytest.raises(ValueError, match=message):
                llm.load_session(folder / "a.session")
            with pytest.raises(ValueError, match=message):
                llm.load_state(state)
            assert llm.tokens == [5, 6, 7]
            assert llm.prefill([*tokens, 1]) == 0  # nor is it taken from the folder
    # wherever the adapter's file is
    with make(session_dir=folder, lora_path=copied, lora_scale=0.5) as llm:
        llm.load_session(folder / "a.session")
        llm.eval([1])
        assert np.array_equal(llm.logits, expected)
        llm.load_state(state)
        llm.eval([1])
        assert np.array_equal(llm.logits, expected)
        llm.reset()
        assert llm.prefill([*tokens, 1]) > 256


def test_what_does_not_fit_is_refused(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"

    def refused(message: str, error: type[Exception] = ValueError, **options: object) -> None:
        with pytest.raises(error, match=message):
            Llama(model_path, **{"n_ctx": 256, "lora_path": path, **options})  # type: ignore[arg-type]

    refused(r"lora_path = .*a.gguf does not exist", FileNotFoundError)
    refused("is a directory", IsADirectoryError, lora_path=tmp_path)
    refused("lora_path = 5 is neither a str nor a path", TypeError, lora_path=5)
    refused("does not fit the model .*got: model", lora_path=model_path)
    path.write_bytes(b"no model")
    refused("lora_path = .* is not a GGUF file")
    path.write_bytes(b"GGUF" + bytes(100))
    refused("is no GGUF file, or is damaged")
    tiny_models.write_adapter(path, {"blk.0.attn_q.weight": (512, 512)})
    refused("does not fit the model .*blk.0.attn_q.weight.*incorrect shape")
    tiny_models.write_adapter(path, {"blk.99.attn_q.weight": (576, 576)})
    refused("does not fit the model .*does not exist in base model")
    tiny_models.write_adapter(path, shapes(1), arch="qwen2")
    refused("does not fit the model .*arch mismatch")
    tiny_models.write_adapter(path, shapes(1), alpha="eight")
    refused("adapter.lora.alpha is not of the type f32")
    tiny_models.write_adapter(path, {"blk.0.attn_q.weight": (576, 576, 3)})
    refused("attn_q.weight.lora_. is not a matrix of numbers")
    tiny_models.write_adapter(path, shapes(1), invocation=[1, 2])
    refused("activated LoRA")
    tiny_models.write_adapter(path, shapes(1))
    data = path.read_bytes()
    for n_bytes in (len(data) - 10, len(data) // 2, 200):
        path.write_bytes(data[:n_bytes])
        refused("lora_path")
    path.write_bytes(data)
    refused("lora_scale = nan is out of range", lora_scale=float("nan"))
    refused("lora_scale = '1' is not a number", TypeError, lora_scale="1")
    refused("lora_scale = 0.5 has no effect without lora_path", lora_path=None, lora_scale=0.5)
    with Llama(model_path, n_ctx=256, lora_path=path) as llm:
        llm.eval([1, 2, 3])
