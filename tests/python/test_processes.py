"""Several processes and threads that make a Llama: each has its own, whatever the others do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rpc import Server, needs_server

SCRIPT = Path(__file__).parent / "other_process.py"

needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")


def lines_of(*command: str, env: dict[str, str] | None = None) -> list[str]:
    result = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, check=False, env=env
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@needs_fork
def test_a_fork_before_the_first_model(first_layers_path: Path) -> None:
    assert lines_of(str(SCRIPT), str(first_layers_path), "imported", "fork") == ["5 tokens", "0"]


@needs_fork
@pytest.mark.parametrize("parent", ["loaded", "computed"])
def test_a_fork_after_the_first_model(first_layers_path: Path, parent: str) -> None:
    said, *rest = lines_of(str(SCRIPT), str(first_layers_path), parent, "fork")
    assert said.startswith("RuntimeError: this process was forked from one that had loaded a model")
    assert 'multiprocessing.get_context("spawn")' in said
    assert rest == ["0", "5"]


def test_spawn(first_layers_path: Path) -> None:
    assert lines_of(str(SCRIPT), str(first_layers_path), "computed", "spawn") == ["5 tokens", "0", "5"]


# ends as Python does, so that all that the child has inherited is finalised
FORKED_WITH_A_SERVER = """
import os, sys
from infllm_cpp import Llama

llm = Llama(sys.argv[1], n_ctx=256, rpc_servers=[sys.argv[2]])
tokens = llm.tokenize("The capital of France is")
llm.eval(tokens)
logits = llm.logits
if os.fork() == 0:
    del llm
    sys.exit()
os.wait()
llm.truncate(len(tokens) - 1)
llm.eval(tokens[-1:])
print(abs(llm.logits - logits).max() < 0.05)
"""


@needs_fork
@needs_server
def test_a_child_leaves_the_servers_of_its_parent_alone(tmp_path: Path, first_layers_path: Path) -> None:
    server = Server(tmp_path / "server.log")
    try:
        assert lines_of("-c", FORKED_WITH_A_SERVER, str(first_layers_path), server.address) == ["True"]
    finally:
        server.stop()


# with another value in the environment than any of the two asks for
TWO_THREADS = """
import os, sys, threading
from infllm_cpp import InfLLMConfig, Llama

seen = set()
def watch():
    while not done.is_set():
        seen.add(os.environ.get("LLAMA_INFLLM"))

def make(infllm):
    for _ in range(8):
        with Llama(sys.argv[1], n_ctx=1024, infllm=infllm) as llm:
            n_local = llm.infllm and llm.infllm.n_local
            if n_local != (infllm and infllm.n_local):
                wrong.append(n_local)

done, wrong = threading.Event(), []
watcher = threading.Thread(target=watch)
threads = [threading.Thread(target=make, args=(infllm,)) for infllm in (None, InfLLMConfig(n_local=256))]
for thread in [watcher, *threads]: thread.start()
for thread in threads: thread.join()
done.set()
watcher.join()
print(wrong, seen)
"""


def test_two_threads_make_contexts_with_and_without_the_method(first_layers_path: Path) -> None:
    env = {**os.environ, "LLAMA_INFLLM": "n_local=512"}
    # n_ubatch follows n_local
    assert lines_of("-c", TWO_THREADS, str(first_layers_path), env=env) == ["[] {'n_local=512'}"]
