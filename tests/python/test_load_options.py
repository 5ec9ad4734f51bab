"""Options that a model is loaded with: what they do, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infllm_cpp
from conftest import SMALL
from infllm_cpp import Llama


def make(path: Path, **options: Any) -> Llama:
    return Llama(path, **{"n_ctx": 256, "infllm": SMALL, **options})


@pytest.mark.skipif(bool(infllm_cpp.local_devices()), reason="without a GPU")
def test_without_a_gpu_there_is_nothing_to_split(first_layers_path: Path) -> None:
    for options in (
        {"split_mode": "none"},
        {"split_mode": 1, "main_gpu": 0},
        {"split_mode": "none", "main_gpu": 0, "infllm": None},
        {"split_mode": "row", "infllm": None},
        {"split_mode": 3, "infllm": None},
    ):
        with make(first_layers_path, **options) as llm:
            llm.eval([1, 2, 3])
    with pytest.raises(ValueError, match="main_gpu = 1 is out of range: the devices are none, use 0"):
        make(first_layers_path, split_mode="none", main_gpu=1)


def test_how_layers_are_split(first_layers_path: Path) -> None:
    for value in ("row", "tensor", 2, 3):
        with pytest.raises(ValueError, match="cuts layers into pieces, but the InfLLM memory"):
            make(first_layers_path, split_mode=value)
    for options, error, message in (
        ({"split_mode": "columns"}, ValueError, "split_mode = 'columns' is unknown: use one of none, layer"),
        ({"split_mode": -1}, ValueError, "split_mode = -1 is unknown"),
        ({"split_mode": True}, TypeError, "split_mode = True is neither a name nor a number"),
        ({"main_gpu": 1}, ValueError, "main_gpu = 1 has no effect with split_mode = 'layer'"),
        ({"main_gpu": -1, "split_mode": "none"}, ValueError, "main_gpu = -1 is out of range"),
        ({"main_gpu": "0"}, TypeError, "main_gpu = '0' is not an integer"),
    ):
        with pytest.raises(error, match=message):
            make(first_layers_path, **options)


def test_metadata_can_be_replaced(first_layers_path: Path, tmp_path: Path) -> None:
    logits = []
    for overrides in (None, {"llama.rope.freq_base": 20000.0}):
        with make(first_layers_path, kv_overrides=overrides) as llm:
            llm.eval(list(range(5, 100)))
            logits.append(llm.logits)
    with make(first_layers_path, rope_freq_base=20000.0) as llm:
        llm.eval(list(range(5, 100)))
        assert np.array_equal(llm.logits, logits[1])
    assert not np.array_equal(*logits)
    with make(first_layers_path, kv_overrides={"llama.context_length": 4096}) as llm:
        assert llm.n_ctx_train() == 4096
        llm.save_session(tmp_path / "a.session")
    with make(first_layers_path) as llm:
        n_tokens = len(llm.tokenize("Hi"))
        with pytest.raises(
            ValueError, match=r"was saved with kv_overrides = .*without lora_path and kv_over"
        ):
            llm.load_session(tmp_path / "a.session")
    with make(first_layers_path, kv_overrides={"tokenizer.ggml.add_bos_token": True}) as llm:
        assert len(llm.tokenize("Hi")) == n_tokens + 1


def test_metadata_that_is_refused(first_layers_path: Path) -> None:
    for overrides, error, message in (
        ([("a", 1)], TypeError, "is not a dict"),
        ({1: 1}, TypeError, "1: 1 is not a name and a bool"),
        ({"a": None}, TypeError, "'a': None is not a name and a bool"),
        ({"a": 2**63}, ValueError, "'a' = 9223372036854775808 is out of range"),
        ({"a": float("nan")}, ValueError, "'a' = nan is not finite"),
        ({"a\0b": 1}, ValueError, "has a character 0"),
        ({"": 1}, ValueError, 'the key "" has 0 bytes: use 1 to 127'),
        ({"x" * 128: 1}, ValueError, "has 128 bytes: use 1 to 127"),
        ({"a": "x" * 128}, ValueError, 'the value of "a" has 128 bytes: use 0 to 127'),
        ({"llama.rope.freq_base": 20000}, ValueError, "is of the type float in the file, but .* type int"),
        ({"llama.context_length": True}, ValueError, "is of the type int in the file, but .* type bool"),
        ({"general.name": 5}, ValueError, "is of the type str in the file, but .* type int"),
        ({"tokenizer.ggml.tokens": "x"}, ValueError, "is an array in the file, which cannot be replaced"),
    ):
        with pytest.raises(error, match=message):
            make(first_layers_path, kv_overrides=overrides)


def test_parameters_of_llama_cpp_python_that_are_not_here(first_layers_path: Path) -> None:
    accepted = {
        "numa": False,
        "logits_all": False,
        "chat_format": None,
        "draft_model": None,
        "lora_base": None,
    }
    with make(first_layers_path, **accepted) as llm:
        llm.eval([1, 2])
    for name, value in (
        ("numa", True),
        ("numa", 1),
        ("logits_all", True),
        ("chat_format", "llama-2"),
        ("chat_handler", print),
        ("draft_model", print),
        ("tokenizer", print),
        ("lora_base", "model.gguf"),
        ("vocab_only", True),
        ("spm_infill", True),
        ("swa_full", True),
        ("op_offload", False),
        ("last_n_tokens_size", 32),
    ):
        with pytest.raises(TypeError, match=rf"^{name} = .* is not supported: "):
            make(first_layers_path, **{name: value})
    with pytest.raises(TypeError, match=r"^Llama\(\) has no parameter 'n_contexts'"):
        make(first_layers_path, n_contexts=5)
