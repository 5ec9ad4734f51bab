"""Stretched positions: with the method as without it, and sessions of other ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import theirs
import tiny_models
from conftest import SMALL
from infllm_cpp import InfLLMConfig, Llama

TEXT = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "

STRETCHED: list[dict[str, Any]] = [
    {"rope_freq_scale": 0.5},
    {"rope_freq_base": 20000.0},
    {"rope_scaling_type": "yarn", "rope_freq_scale": 0.25},
    {
        "rope_scaling_type": 2,
        "rope_freq_scale": 0.25,
        "yarn_orig_ctx": 1024,
        "yarn_ext_factor": 0.5,
        "yarn_beta_fast": 16.0,
        "yarn_beta_slow": 2.0,
    },
    {"yarn_attn_factor": 1.2},
]


def make(path: Path, infllm: InfLLMConfig | None = SMALL, **options: Any) -> Llama:
    return Llama(path, **{"n_ctx": 1024, "n_batch": 128, "infllm": infllm, **options})


def with_position(position: str) -> InfLLMConfig:
    return InfLLMConfig(**{**SMALL.__dict__, "position": position})


@pytest.mark.parametrize("options", STRETCHED)
def test_while_all_fits_the_method_changes_nothing(first_layers_path: Path, options: dict[str, Any]) -> None:
    with make(first_layers_path, None) as llm:
        tokens = (llm.tokenize(TEXT) * 10)[:400]
        llm.eval(tokens)
        as_the_model_says = llm.logits
    with make(first_layers_path, None, **options) as llm:
        llm.eval(tokens)
        plain = llm.logits
    assert np.abs(plain - as_the_model_says).max() > 0.05
    for position in ("true", "infllm"):
        with make(first_layers_path, with_position(position), **options) as llm:
            llm.eval(tokens)
            assert np.array_equal(llm.logits, plain)


@pytest.mark.parametrize("options", STRETCHED[2:4])
def test_they_mean_what_they_mean_in_llama_cpp_python(
    first_layers_path: Path, options: dict[str, Any]
) -> None:
    options = {**options, "rope_scaling_type": 2}
    with make(first_layers_path, None, **options) as llm:
        tokens = (llm.tokenize(TEXT) * 10)[:100]
        got = llm.eval(tokens, all_logits=True)[-1]
        expected = theirs.last_logits(
            first_layers_path, tokens, n_ctx=1024, n_batch=128, n_ubatch=128, flash_attn=True, **options
        )
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("options", [STRETCHED[0], STRETCHED[3]])
def test_blocks_that_move_are_rotated_alike(first_layers_path: Path, options: dict[str, Any]) -> None:
    with make(first_layers_path, with_position("infllm"), **options) as llm:
        tokens = (llm.tokenize(TEXT) * 60)[:1000]
        llm.eval(tokens)
        stats = llm.stats()
        assert stats is not None
        assert stats.n_page_in > 0
        assert llm._ctx.check_slots() == 0
        fork = llm.fork()
        llm.eval([5])
        with fork:
            fork.eval([5])
            assert np.array_equal(fork.logits, llm.logits)


def test_an_answer_depends_on_where_blocks_are(first_layers_path: Path) -> None:
    """All blocks selected, at their true positions: attention sees all tokens, as without the method."""
    everything = InfLLMConfig(
        n_init=32, n_local=128, block_size=32, topk=24, max_cached_blocks=24, n_repr=4, position="true"
    )
    for options in (STRETCHED[0], STRETCHED[3]):
        with make(first_layers_path, None, **options) as llm:
            tokens = (llm.tokenize(TEXT) * 60)[:1020]
            llm.eval(tokens)
            plain = llm.logits
        with make(first_layers_path, everything, n_ubatch=32, **options) as llm:
            llm.eval(tokens)
            stats = llm.stats()
            assert stats is not None
            assert stats.n_blocks > 0
            assert np.corrcoef(llm.logits, plain)[0, 1] > 0.99


def test_yarn_extends_the_training_length(first_layers_path: Path) -> None:
    """For the parameters that follow from it, and for every context of an object alike."""
    options = {"rope_scaling_type": "yarn", "rope_freq_scale": 0.25, "yarn_orig_ctx": 1024}
    with make(first_layers_path, InfLLMConfig(profile="fast"), n_ctx=4096, **options) as llm:
        assert llm.n_ctx_train() == 4096
        assert llm.infllm is not None
        assert llm.infllm.position == "true"
        assert llm.infllm.n_local == 512
        llm.eval([1, 2, 3])
        with llm.fork() as fork:
            assert fork.infllm == llm.infllm
            assert fork.tokens == [1, 2, 3]
    with make(first_layers_path, InfLLMConfig(), n_ctx=8192, **options) as llm:
        assert llm.infllm is not None
        assert llm.infllm.position == "infllm"
    with make(first_layers_path, None, n_ctx=0, **options) as llm:
        assert llm.n_ctx() == 4096
    # within the longer length texts are not read again
    with make(first_layers_path, InfLLMConfig(n_local=128), n_ctx=0, **options) as llm:
        assert llm._ctx.n_ctx() == 4096


def test_sessions_and_states_of_other_positions_are_refused(first_layers_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    with make(first_layers_path, rope_freq_scale=0.5) as llm:
        llm.prefill((llm.tokenize(TEXT) * 60)[:800])
        llm.save_session(path)
        state = llm.save_state()
        llm.eval([1])
        expected = llm.logits
    with make(first_layers_path, rope_freq_scale=0.5, rope_scaling_type="linear", session=path) as llm:
        llm.eval([1])
        assert np.array_equal(llm.logits, expected)
    for options, message in (
        ({}, "rope_freq_scale: 0.5 in the state, 1 in this context"),
        ({"rope_freq_scale": 0.5, "rope_freq_base": 5e5}, "rope_freq_base: 100000 in the state, 500000 in"),
        ({"rope_freq_scale": 0.5, "yarn_attn_factor": 1.5}, "yarn_attn_factor: 1 in the state, 1.5 in"),
        ({"rope_freq_scale": 0.5, "yarn_beta_fast": 16.0}, "yarn_beta_fast: 32 in the state, 16 in"),
        ({"rope_freq_scale": 0.5, "yarn_orig_ctx": 512}, "yarn_orig_ctx: 8192 in the state, 512 in"),
        ({"rope_freq_scale": 0.5, "rope_scaling_type": "yarn"}, "yarn_ext_factor: 0 in the state, 1 in"),
    ):
        with make(first_layers_path, n_ctx=2048, **options) as llm:
            llm.eval([5, 6])
            for load in (lambda llm=llm: llm.load_session(path), lambda llm=llm: llm.load_state(state)):
                with pytest.raises(ValueError, match=message):
                    load()
            assert llm.tokens == [5, 6]


def test_what_is_refused(model_path: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"rope_freq_base": -1.0}, "rope_freq_base = -1.0 is out of range"),
        ({"rope_freq_scale": float("nan")}, "rope_freq_scale = nan is out of range"),
        ({"rope_freq_scale": 1e-9}, "rope_freq_scale = 1e-09 is out of range: use a value from 0.01 to 100"),
        ({"rope_scaling_type": "ntk"}, "rope_scaling_type = 'ntk' is unknown: use one of none, linear, yarn"),
        ({"rope_scaling_type": 4}, "rope_scaling_type = 4 is unknown"),
        ({"rope_scaling_type": "none", "rope_freq_scale": 0.5}, "rope_freq_scale = 0.5 has no effect with"),
        ({"yarn_ext_factor": float("inf")}, "yarn_ext_factor = inf is out of range"),
        ({"yarn_orig_ctx": -1}, "yarn_orig_ctx = -1 is out of range"),
        ({"yarn_orig_ctx": 2**31 - 1, "rope_freq_scale": 0.01}, "more than 2147483647 positions"),
    ):
        with pytest.raises(ValueError, match=message):
            make(model_path, **options)
    with pytest.raises(TypeError, match="rope_freq_base = '1' is not a number"):
        make(model_path, rope_freq_base="1")
    path = tmp_path / "bert.gguf"
    tiny_models.write_bert(path, gguf.PoolingType.MEAN)
    with pytest.raises(ValueError, match=r"rope_freq_scale = 0\.5 has no effect: the model has no RoPE"):
        Llama(path, infllm=None, embedding=True, rope_freq_scale=0.5)
