"""A server that tests start, and requests to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from infllm_cpp.cli.serve import SERVER
from rpc import free_port

N_CTX = 16384  # the model was trained for 8,192
skipped = pytest.mark.skipif(
    not SERVER.exists(), reason="llama-server is not built: set INFLLM_BUILD_SERVER=ON"
)
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

    def metrics(self) -> dict[str, float]:
        """Those that have no labels."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
        items = (line.split(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in items if "{" not in name}

    def post(self, path: str, timeout: float = 300, **body: Any) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return json.load(response)

    def complete(self, prompt: str, **options: Any) -> Any:
        return self.post("/completion", prompt=prompt, n_predict=16, temperature=0, **options)

    def stop(self) -> None:
        """Ctrl-C, which must be enough."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            assert self.process.wait(30) == 0, self.log.read_text()
