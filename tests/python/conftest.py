"""The demo model, and contexts so small that a few hundred tokens page."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gguf_copy import copy_gguf

import infllm_cpp
from infllm_cpp import InfLLMConfig, Llama
from infllm_cpp.passkey import make_passkey_prompt
from served import Server

# a shell starts background jobs with SIGINT ignored, which programs inherit: those of the tests must not
signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL = InfLLMConfig(
    n_init=32, n_local=256, block_size=32, topk=8, max_cached_blocks=8, repr_topk=4, n_repr=4, n_score=16
)


@pytest.fixture(scope="session")
def model_path() -> Path:
    return infllm_cpp.fetch_demo_model()


N_FIRST_LAYERS = 9


@pytest.fixture(scope="session")
def first_layers_path(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's first layers alone: three times as fast, for what no answer depends on."""
    path = tmp_path_factory.mktemp("model") / "first-layers.gguf"
    copy_gguf(model_path, path, n_layer=N_FIRST_LAYERS)
    return path


@pytest.fixture(scope="session")
def shared_llm(model_path: Path) -> Iterator[Llama]:
    with Llama(model_path, n_ctx=1024, n_batch=128, infllm=SMALL) as llm:
        yield llm


@pytest.fixture
def llm(shared_llm: Llama) -> Iterator[Llama]:
    """An empty context with the method on."""
    shared_llm.reset()
    shared_llm.reset_stats()
    yield shared_llm
    shared_llm.set_trace(None)


@pytest.fixture(scope="session")
def passkey(shared_llm: Llama) -> tuple[list[int], str]:
    """A prompt of nearly twice the tokens that SMALL keeps resident, and the key in it."""
    return make_passkey_prompt(shared_llm.tokenize, 1000, depth=0.3)


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def infllm(model_path: Path) -> Run:
    """Run the command line in a process of its own."""

    def run(
        *args: str, stdin: str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "infllm_cpp", *args],
            input=stdin,
            capture_output=True,
            text=True,
            env={**os.environ, **(env or {})},
            timeout=300,
            check=False,
        )

    return run


def interrupt(process: subprocess.Popen[str]) -> None:
    """What Ctrl-C does."""
    process.send_signal(signal.SIGINT)


@pytest.fixture
def start(first_layers_path: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(*options: str) -> Server:
        servers.append(Server(first_layers_path, tmp_path / f"{len(servers)}.log", *options))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()
