"""An unmodified program with our libllama: llama-cpp-python, the method off and on by LLAMA_INFLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import infllm_cpp
from conftest import Run
from rpc import BIN_DIR

# llama-cpp-python is installed without libraries of its own by scripts/test.sh
SCRIPT = """
import ctypes, json, sys
import llama_cpp

tokens = json.loads(sys.stdin.read())
llm = llama_cpp.Llama(sys.argv[1], n_ctx=1024, n_batch=128, n_ubatch=128, verbose=False)
text = llm(tokens, max_tokens=6, temperature=0)["choices"][0]["text"]

lib = llama_cpp.llama_cpp._lib
lib.llama_infllm_active.argtypes = [ctypes.c_void_p]
lib.llama_infllm_active.restype = ctypes.c_bool
print(json.dumps([lib.llama_infllm_active(llm.ctx), text]))
"""

PARAMS = "n_init=32,n_local=256,block_size=32,topk=8,max_cached_blocks=8,repr_topk=4,n_score=16"


def run(
    model_path: Path, tokens: list[int], value: str | None, script: str = SCRIPT
) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "LLAMA_INFLLM"}
    env["LLAMA_CPP_LIB_PATH"] = str(infllm_cpp.library_dir())
    if value is not None:
        env["LLAMA_INFLLM"] = value
    return subprocess.run(
        [sys.executable, "-c", script, str(model_path)],
        input=json.dumps(tokens),
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
        check=False,
    )


def test_the_same_script_with_the_method_off_and_on(model_path: Path, passkey: tuple[list[int], str]) -> None:
    tokens, key = passkey
    for value, active in ((None, False), ("0", False), (PARAMS, True)):
        result = run(model_path, tokens, value)
        assert result.returncode == 0, result.stderr
        is_active, text = json.loads(result.stdout.splitlines()[-1])
        assert is_active == active, value
        assert text.strip().startswith(key), value


VOCABULARY = """
import json, sys
import llama_cpp

llm = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)
assert llm.detokenize(llm.tokenize(b"Hello")) == b"Hello"
"""


def test_a_model_of_a_vocabulary_alone_has_no_memory(model_path: Path) -> None:
    result = run(model_path, [], "1", VOCABULARY)
    assert result.returncode == 0, result.stderr


def test_the_variables_are_printed_for_a_shell(infllm: Run, model_path: Path) -> None:
    printed = infllm("env", "--n-local", "256", "--block-size", "32").stdout
    script = f"""{printed}
exec "$0" -c 'import llama_cpp, sys
llm = llama_cpp.Llama(sys.argv[1], n_ctx=1024, n_batch=128, n_ubatch=128, verbose=True)' "$1" """
    result = subprocess.run(
        ["sh", "-c", script, sys.executable, str(model_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "n_local = 256, block_size = 32" in result.stderr
    assert "LLAMA_INFLLM=0" in infllm("env", "--no-infllm").stdout


STATES = """
import json, sys, tempfile
import numpy as np
import llama_cpp

tokens = json.loads(sys.stdin.read())

def make():
    options = {"n_ctx": 1280, "n_batch": 128, "n_ubatch": 128, "verbose": False}
    return llama_cpp.Llama(sys.argv[1], **options)

def greedy(llm, n):
    token, rows = 1, []
    for _ in range(n):
        llm.eval([token])
        rows.append(np.ctypeslib.as_array(llm._ctx.get_logits(), (llm.n_vocab(),)).copy())
        token = int(rows[-1].argmax())
    return np.array(rows)

llm, other = make(), make()
llm.eval(tokens)
state = llm.save_state()
expected = greedy(llm, 64)
other.eval(tokens[:50])
other.load_state(state)
result = {"same": bool(np.array_equal(greedy(other, 64), expected)), "bytes": len(state.llama_state)}

def answer(llm, prompt):
    return llm(prompt, max_tokens=6, temperature=0)["choices"][0]["text"]

for kind in ("RAM", "Disk"):
    options = {"cache_dir": tempfile.mkdtemp()} if kind == "Disk" else {}
    cache = getattr(llama_cpp, f"Llama{kind}Cache")(**options)
    llm.reset()
    llm.set_cache(cache)
    before = answer(llm, tokens)
    answer(llm, tokens[:1] + tokens[100:200])
    result[kind] = [before, answer(llm, tokens), cache.cache_size > 0]
print(json.dumps(result))
"""


def test_states_and_caches(model_path: Path, passkey: tuple[list[int], str]) -> None:
    tokens, key = passkey
    result = run(model_path, tokens, PARAMS, STATES)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["same"]
    assert answer["bytes"] > len(tokens) * 1000  # K and V of all tokens, not of those that are resident
    for kind in ("RAM", "Disk"):
        before, after, is_cached = answer[kind]
        assert before.strip().startswith(key)
        assert after == before
        assert is_cached


def test_a_bad_value_makes_no_context(model_path: Path, passkey: tuple[list[int], str]) -> None:
    result = run(model_path, passkey[0], "topk=16,max_cached_blocks=4,n_local=1024")
    assert result.returncode == 1
    assert "Failed to create llama_context" in result.stderr


@pytest.mark.skipif(not BIN_DIR, reason="INFLLM_TEST_BIN_DIR has no llama-perplexity: run scripts/test.sh")
def test_a_tool_that_fits_its_parameters_to_memory(model_path: Path, tmp_path: Path) -> None:
    """It first opens the model without its weights, to measure contexts."""
    text = tmp_path / "text.txt"
    text.write_text(" ".join(str(i) for i in range(400)))
    assert BIN_DIR
    options = "-c 512 -b 128 -ub 128 --chunks 1 -lv 4 -fit on".split()
    result = subprocess.run(
        [Path(BIN_DIR) / "llama-perplexity", "-m", model_path, "-f", text, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "LLAMA_INFLLM": "n_local=128,topk=2"},
        timeout=300,
        check=False,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert "fitting params to device memory" in output
    assert "InfLLM memory switched on" in output
    assert "Final estimate" in output
