"""`infllm serve`: llama-server with the InfLLM memory, as clients see it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from conftest import Run
from infllm_cpp import InfLLMConfig
from infllm_cpp._serve import environment, server_path
from rpc import free_port

try:
    server_path()
except FileNotFoundError:
    pytestmark = pytest.mark.skip(reason="llama-server is not built: set INFLLM_BUILD_SERVER=ON")

N_CTX = 16384  # the model was trained for 8,192
SMALL = ["--n-local", "256", "--block-size", "32", "--topk", "4", "--n-batch", "256"]
TEXT = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


class Server:
    """A server, and requests to it."""

    def __init__(self, model: Path, log: Path, *options: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "infllm_cpp", "serve", "-m", str(model), "--port", str(port)]
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*command, "--n-ctx", str(N_CTX), *SMALL, *options], stdout=file, stderr=file, env=os.environ
            )
        for _ in range(600):
            try:
                if self.get("/health")["status"] == "ok":
                    return
            except (OSError, KeyError):
                pass
            assert self.process.poll() is None, log.read_text()
            sleep(0.1)
        raise TimeoutError(log.read_text())

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return json.load(response)

    def post(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)

    def complete(self, prompt: str, **options: Any) -> Any:
        return self.post("/completion", prompt=prompt, n_predict=16, temperature=0, **options)

    def stop(self) -> None:
        """Ctrl-C, which must be enough."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            assert self.process.wait(30) == 0, self.log.read_text()


@pytest.fixture
def start(first_layers_path: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(*options: str) -> Server:
        servers.append(Server(first_layers_path, tmp_path / f"{len(servers)}.log", *options))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


def test_a_text_beyond_the_training_length(start: Callable[..., Server]) -> None:
    server = start("--parallel", "2")
    assert server.get("/props")["default_generation_settings"]["n_ctx"] == N_CTX
    text = TEXT * 480  # more than 8,192 tokens
    first = server.complete(text + "The grass is")
    assert first["tokens_evaluated"] > 9000
    second = server.complete(text + "The sky is")
    assert second["timings"]["cache_n"] > 9000  # the text is read once
    assert second["timings"]["prompt_n"] < 600

    with pytest.raises(urllib.error.HTTPError) as failed:
        server.complete(text * 2)
    assert failed.value.code == 400
    assert "context size" in failed.value.read().decode()

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda n: server.complete(f"{n} " + TEXT * 40), range(4)))
    assert all(answer["tokens_predicted"] == 16 for answer in answers)


def test_slots_are_saved_and_restored(start: Callable[..., Server], tmp_path: Path) -> None:
    folder = tmp_path / "slots"
    folder.mkdir()
    prompt = TEXT * 60
    server = start("--session-dir", str(folder))
    expected = server.complete(prompt, id_slot=0)
    saved = server.post("/slots/0?action=save", filename="a.bin")
    assert saved["n_saved"] > 1000
    server.stop()

    other = start("--session-dir", str(folder))
    assert other.post("/slots/0?action=restore", filename="a.bin")["n_restored"] == saved["n_saved"]
    answer = other.complete(prompt, id_slot=0)
    assert answer["content"] == expected["content"]
    assert answer["timings"]["cache_n"] > 1000

    # of other parameters: refused, and the server goes on
    third = start("--session-dir", str(folder), "--n-init", "32")
    with pytest.raises(urllib.error.HTTPError) as failed:
        third.post("/slots/0?action=restore", filename="a.bin")
    assert failed.value.code == 400
    assert third.complete("The sky is")["tokens_predicted"] == 16


def test_prompts_come_back_from_the_cache_in_memory(start: Callable[..., Server]) -> None:
    server = start("--cache-ram", "1024", "--cache-idle-slots")
    prompts = [TEXT * 60, "Something else is told here, of no meaning at all. " * 100]
    first = [server.complete(prompt) for prompt in prompts]
    again = [server.complete(prompt) for prompt in prompts]
    for a, b in zip(first, again, strict=True):
        assert a["content"] == b["content"]
        assert b["timings"]["cache_n"] > 1000
    log = server.log.read_text()
    assert "failed to" not in log


def test_chat_and_schema(start: Callable[..., Server]) -> None:
    server = start()
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    answer = server.post(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": TEXT * 60 + "How many?"}],
        max_tokens=64,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    assert answer["usage"]["prompt_tokens"] > 1000
    content = answer["choices"][0]["message"]["content"]
    assert content.lstrip().startswith("{")


def test_what_cannot_be_served_is_told_before_it_starts(infllm: Run, first_layers_path: Path) -> None:
    model = ["-m", str(first_layers_path)]
    for options, message in (
        (["--n-ctx", "32768", "--n-local", "1000000"], "n_local = 1000000"),
        (["--port", "0"], "port = 0 is out of range"),
        (["--parallel", "1000"], "parallel = 1000 is out of range"),
    ):
        result = infllm("serve", *model, *options)
        assert result.returncode == 1
        assert message in result.stderr
    assert "--api-key" in infllm("serve", "--", "--help").stdout


def test_the_environment_of_other_programs() -> None:
    assert environment(None) == "0"
    assert environment(InfLLMConfig()) == "1"
    config = InfLLMConfig(n_local=256, search="queries", store_path="/tmp", type_store="q8_0")
    assert environment(config) == "n_local=256,search=queries,store_path=/tmp,type_store=q8_0"
