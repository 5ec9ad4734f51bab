"""Bad input is one clear sentence, and the process lives on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infllm_cpp import InfLLMConfig, Llama, local_devices


def message_of(error: type[Exception], path: Path, **kwargs: Any) -> str:
    with pytest.raises(error) as info:
        Llama(path, **kwargs)
    message = str(info.value)
    assert "\n" not in message
    return message


# -- files


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.gguf"
    assert message_of(FileNotFoundError, path) == f"model file {path} does not exist"


def test_a_directory(tmp_path: Path) -> None:
    assert f"{tmp_path} is a directory" in message_of(IsADirectoryError, tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    assert "permission denied" in message_of(PermissionError, path)


@pytest.mark.parametrize("content", [b"", b"GG", b"<!DOCTYPE html>"])
def test_a_file_that_is_not_gguf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.gguf"
    path.write_bytes(content)
    message = message_of(ValueError, path)
    assert f"{path} is not a GGUF file" in message


@pytest.mark.parametrize("n_bytes", [4, 20, 5_000, 1_000_000, 2_000_000, 50_000_000])
def test_a_truncated_file(tmp_path: Path, model_path: Path, n_bytes: int) -> None:
    path = tmp_path / "cut.gguf"
    with open(model_path, "rb") as file:
        path.write_bytes(file.read(n_bytes))
    message = message_of(ValueError, path)
    assert message.startswith(f"{path} cannot be loaded: ")
    assert "is the file complete" in message


def test_a_file_of_noise(tmp_path: Path) -> None:
    path = tmp_path / "noise.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(range(256)) * 64)
    assert "cannot be loaded" in message_of(ValueError, path)


# -- parameters of the context


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"n_ctx": -1}, ["n_ctx = -1", "0"]),
        ({"n_batch": 0}, ["n_batch = 0", "1"]),
        ({"n_ubatch": 0}, ["n_ubatch = 0", "1"]),
        ({"n_threads": 0}, ["n_threads = 0", "1"]),
        ({"n_gpu_layers": -2}, ["n_gpu_layers = -2", "-1"]),
        ({"seed": -1}, ["seed = -1", "0"]),
        ({"type_k": "q6_K"}, ["type_k = 'q6_K'", "q8_0"]),
        ({"type_v": "f32"}, ["type_v = 'f32'", "q8_0"]),
        ({"infllm": InfLLMConfig(topk=5, max_cached_blocks=4)}, ["topk = 5", "max_cached_blocks = 4"]),
        ({"infllm": InfLLMConfig(block_size=0)}, ["block_size = 0", "1"]),
        ({"infllm": InfLLMConfig(repr_topk=65, block_size=64)}, ["repr_topk = 65", "64"]),
        ({"infllm": InfLLMConfig(n_local=256), "n_ubatch": 512}, ["n_ubatch = 512", "n_local = 256"]),
    ],
)
def test_parameters_that_cannot_work(model_path: Path, kwargs: dict[str, Any], words: list[str]) -> None:
    message = message_of(ValueError, model_path, **kwargs)
    for word in words:
        assert word in message


def test_a_wrong_type_of_config(model_path: Path) -> None:
    assert "InfLLMConfig" in message_of(TypeError, model_path, infllm=True)


@pytest.mark.skipif(bool(local_devices()), reason="there is a GPU")
def test_gpu_layers_without_a_gpu(model_path: Path) -> None:
    message = message_of(RuntimeError, model_path, n_gpu_layers=10)
    assert message.startswith("n_gpu_layers = 10, but no GPU was found")


LIMITED = """
import resource, sys
from infllm_cpp import Llama

resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
try:
    Llama(sys.argv[1], n_ctx=200_000, infllm=None)
except MemoryError as err:
    print(err)
completion = Llama(sys.argv[1], n_ctx=256)("The capital of France is", max_tokens=1, temperature=0)
print(completion["choices"][0]["text"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
def test_more_context_than_memory(model_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(model_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert re.match(r"n_ctx = 200000 needs more memory than there is \(.*\)\n Paris\n$", result.stdout)


# -- calls


def test_a_prompt_longer_than_the_context(llm: Llama) -> None:
    with pytest.raises(ValueError, match=r"the prompt has 1025 tokens, more than n_ctx = 1024: use"):
        llm([1] * 1025)
    with pytest.raises(ValueError, match=r"1025 tokens after 0 stored ones are more than n_ctx = 1024: use"):
        llm.eval([1] * 1025)
    with pytest.raises(ValueError, match="n_ctx = 1024"):
        llm.create_chat_completion([{"role": "user", "content": "a " * 1100}])
    assert llm.n_tokens == 0


def test_a_token_that_does_not_exist(llm: Llama) -> None:
    for tokens in ([1, 10**6], [-1]):
        with pytest.raises(ValueError, match=r"token .* is out of range: the model has tokens 0 to 49151"):
            llm.eval(tokens)
    with pytest.raises(ValueError, match="token 1000000 is out of range"):
        llm.detokenize([10**6])
    # not even the batches before it
    with pytest.raises(ValueError, match=f"token {2**40} is out of range"):
        llm.eval([1] * 300 + [2**40])
    assert llm.n_tokens == 0


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([1, 2.0], r"tokens\[1\] = 2.0 is not an integer"),
        (["Hi"], r"tokens\[0\] = 'Hi' is not an integer"),
        ([1, None], r"tokens\[1\] = None is not an integer"),
        ([True], r"tokens\[0\] = True is not an integer"),
        ([[1, 2]], r"tokens\[0\] = \[1, 2\] is not an integer"),
        (np.array([1.0]), r"tokens\[0\] = 1.0 is not an integer"),
        (np.array([[1, 2]]), r"tokens have shape \(1, 2\)"),
        (b"Hi", r"b'Hi' is not a sequence of tokens: use tokenize\(\) for a text"),
        (5, "5 is not a sequence of tokens"),
        (None, "None is not a sequence of tokens"),
    ],
)
def test_tokens_that_are_no_integers(llm: Llama, tokens: Any, words: str) -> None:
    for use in (llm.eval, llm.prefill, llm.detokenize, llm, llm.create_completion):
        with pytest.raises(TypeError, match=words):
            use(tokens)
    assert llm.n_tokens == 0


def test_integers_of_any_kind_are_tokens(llm: Llama) -> None:
    tokens = llm.tokenize("The capital of France is")
    for kind in (tuple(tokens), np.array(tokens), np.array(tokens, dtype=np.uint16), list(np.array(tokens))):
        llm.reset()
        llm.eval(kind)
        assert llm.tokens == tokens
        assert all(type(token) is int for token in llm.tokens)
        assert llm.detokenize(kind) == b"The capital of France is"
        assert llm(kind, max_tokens=1, temperature=0)["choices"][0]["text"] == " Paris"


def test_an_empty_prompt(llm: Llama) -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        llm([])
    with pytest.raises(ValueError, match="the prompt is empty"):
        llm.prefill([])
    # a text may be empty where the model has a BOS token
    assert llm("", max_tokens=1)["usage"]["prompt_tokens"] == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("top_k", -1),
        ("top_p", 1.1),
        ("min_p", -0.5),
        ("repeat_penalty", 0),
        ("seed", 2**32),
        ("temperature", float("nan")),
    ],
)
def test_sampling_out_of_range(llm: Llama, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} = .* is out of range: use a value from"):
        # at the call, not at the first step of the stream
        llm("Hi", stream=True, **{name: value})  # type: ignore[call-overload]


def test_a_fraction_where_a_whole_number_belongs(llm: Llama, model_path: Path) -> None:
    for name in ("n_ctx", "n_batch", "n_ubatch", "n_threads", "n_gpu_layers", "seed"):
        assert message_of(TypeError, model_path, **{name: 2.5}) == f"{name} = 2.5 is not an integer"
    for name in ("max_tokens", "top_k", "seed"):
        with pytest.raises(TypeError, match=f"^{name} = 2.5 is not an integer"):
            llm("Hi", **{name: 2.5})  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"^n_tokens = 2.5 is not an integer"):
        llm.truncate(2.5)  # type: ignore[arg-type]


def test_text_that_is_none(llm: Llama) -> None:
    with pytest.raises(TypeError, match="text = 5 is neither a str nor bytes"):
        llm.tokenize(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"stop = \[5\] is neither a str nor a sequence of them"):
        llm("Hi", stop=[5])  # type: ignore[list-item]


def test_an_empty_stop_string(llm: Llama) -> None:
    with pytest.raises(ValueError, match="stop has an empty string"):
        llm("Hi", stop=["a", ""])


def test_text_that_is_not_unicode(llm: Llama) -> None:
    assert len(llm.tokenize(b"a\xff\xfeb")) > 0
    assert len(llm.tokenize("a\ud800b")) > 0


def test_the_memory_needs_flash_attention(model_path: Path) -> None:
    assert "flash_attn = off does not work" in message_of(RuntimeError, model_path, flash_attn=False)
