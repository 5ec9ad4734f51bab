"""A device without a device: llama.cpp's RPC server in a process of its own, on loopback."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

BIN_DIR = os.environ.get("INFLLM_TEST_BIN_DIR")

needs_server = pytest.mark.skipif(
    not BIN_DIR, reason="INFLLM_TEST_BIN_DIR has no ggml-rpc-server: run scripts/test.sh"
)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """A running ggml-rpc-server with the CPU as its device, and its debug log."""

    def __init__(self, log: Path) -> None:
        assert BIN_DIR
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [f"{BIN_DIR}/ggml-rpc-server", "-H", "127.0.0.1", "-p", str(port), "-t", "2"],
                stdout=file,
                stderr=file,
                env={**os.environ, "GGML_RPC_DEBUG": "1"},
            )
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except OSError:
                assert self.process.poll() is None, log.read_text()
                time.sleep(0.05)
        raise TimeoutError("ggml-rpc-server does not start")

    def buffer_sizes(self) -> list[int]:
        """Bytes of every buffer that was allocated so far, in their order."""
        return [int(n) for n in re.findall(r"alloc_buffer\] device: 0, size: (\d+) ->", self.log.read_text())]

    def resident_set(self) -> int:
        """Bytes of physical memory of the server's process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    def stop(self) -> None:
        """By its own process id."""
        self.process.kill()
        self.process.wait()


class Meter:
    """Passes one connection on to a server, and counts its bytes."""

    def __init__(self, address: str) -> None:
        self.to_device = 0
        self.to_host = 0
        self._target = address
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return  # closed
            host, _, port = self._target.rpartition(":")
            server = socket.create_connection((host, int(port)))
            for pair in ((client, server, "to_device"), (server, client, "to_host")):
                pair[1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, counter: str) -> None:
        try:
            while data := source.recv(1 << 16):
                setattr(self, counter, getattr(self, counter) + len(data))
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            target.close()

    def stop(self) -> None:
        self._socket.close()
