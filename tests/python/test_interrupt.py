"""Ctrl-C and interrupt() stop a computation; the object can be used on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from conftest import interrupt
from infllm_cpp import Llama

# one decode of the whole text: nothing but the abort callback can end it early
SCRIPT = """
import sys
from infllm_cpp import InfLLMConfig, Llama

infllm = InfLLMConfig() if sys.argv[2] == "on" else None
llm = Llama(sys.argv[1], n_ctx=8192, n_batch=8192, n_ubatch=256, infllm=infllm)
tokens = (llm.tokenize("The grass is green. ") * 2000)[:8000]
print("computing", flush=True)
try:
    llm.eval(tokens)
    print("not interrupted")
except KeyboardInterrupt:
    print(llm.n_tokens, llm.tokens == tokens[:llm.n_tokens])
completion = llm("The capital of France is", max_tokens=4, temperature=0)
print(repr(completion["choices"][0]["text"]))
"""


@pytest.mark.parametrize("method", ["on", "off"])
def test_ctrl_c_stops_a_long_prefill(model_path: Path, method: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(model_path), method],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "computing\n"
    time.sleep(1)  # into the computation
    interrupt(process)
    out, err = process.communicate(timeout=120)

    assert err == ""
    n_tokens, is_prefix = out.splitlines()[0].split()
    assert int(n_tokens) < 8000
    assert is_prefix == "True"
    assert out.splitlines()[1].startswith("' Paris")


def test_interrupt_from_another_thread(llm: Llama) -> None:
    tokens = (llm.tokenize("The grass is green. ") * 300)[:1000]
    started = threading.Event()

    def stop() -> None:
        started.wait()
        llm.interrupt()

    def progress(done: int, total: int) -> None:
        started.set()
        thread.join()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(InterruptedError):
        llm.eval(tokens, progress=progress)
    # the first batch was done when it was interrupted
    assert llm.tokens == tokens[:128]
    llm.eval(tokens[128:256])
    assert llm.n_tokens == 256


def test_a_late_interrupt_does_not_stop_the_next_call(llm: Llama) -> None:
    llm.interrupt()
    assert llm("The capital of France is", max_tokens=2, temperature=0)["choices"][0]["text"].startswith(
        " Paris"
    )
