"""Warnings where RPC servers are on other machines, or a server is open to everybody."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import served
from conftest import Run
from infllm_cpp import Llama, _core
from infllm_cpp._exposure import is_loopback, warn_of_clients, warn_of_servers
from rpc import free_port

LOCAL = ("127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "/run/infllm.sock")
REMOTE = ("0.0.0.0", "::", "10.0.0.2", "192.0.2.1", "[2001:db8::1]", "localhost.example.org", "gpu", "")


def test_addresses() -> None:
    assert all(map(is_loopback, LOCAL))
    assert not any(map(is_loopback, REMOTE))


def test_servers_on_other_machines() -> None:
    for host in REMOTE[:-1]:
        with pytest.warns(UserWarning, match="neither encrypted nor authenticated") as caught:
            warn_of_servers(["127.0.0.1:1", f"{host}:50052"])
        assert f"rpc_servers: {host}:50052: " in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_servers([f"{host}:50052" for host in LOCAL[:-1]])


def test_a_llama_warns_before_it_connects(model_path: Path) -> None:
    # an address of this machine that is not known to be: nothing leaves it
    address = f"0.0.0.0:{free_port()}"
    with pytest.warns(UserWarning, match="neither encrypted") as caught, pytest.raises(ConnectionError):
        Llama(model_path, rpc_servers=[address])
    assert caught[0].filename == __file__


def test_nothing_is_connected_unasked(model_path: Path) -> None:
    program = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs): raise AssertionError(args)\n"
        "socket.socket.connect = socket.create_connection = refuse\n"
        "from infllm_cpp import Llama\n"
        "Llama(sys.argv[1], n_ctx=256).eval([1])\n"
        "import os\n"
        "fds = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if fd != '3']\n"
        "assert not [fd for fd in fds if fd.startswith('socket')], fds\n"
    )
    command = [sys.executable, "-c", program, str(model_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all("RPC" not in device.name for device in _core.local_devices())


def test_rpc_is_not_built_unasked() -> None:
    root = Path(__file__).resolve().parents[2]
    upstream = (root / "third_party/llama.cpp/ggml/CMakeLists.txt").read_text()
    assert re.search(r'option\(GGML_RPC\s+"[^"]*"\s+OFF\)', upstream)
    ours = [
        root / "CMakeLists.txt",
        root / "csrc/CMakeLists.txt",
        root / "pyproject.toml",
        *root.glob("cmake/**/*.cmake"),
    ]
    assert not [path for path in ours if re.search(r"GGML_RPC\W+(ON|on|1|true)", path.read_text())]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "host = 0.0.0.0 without --api-key"),
        (["--host", "127.0.0.1", "--host", "10.0.0.2"], "host = 10.0.0.2 without"),
        (["--host", "127.0.0.1, ::"], "host = :: without"),
        (["--rpc", "127.0.0.1:1,gpu:2"], "rpc_servers: gpu:2: "),
    ],
)
def test_a_server_that_is_open(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_API_KEY", raising=False)
    monkeypatch.delenv("LLAMA_ARG_RPC", raising=False)
    with pytest.warns(UserWarning, match=message):
        warn_of_clients(arguments)


def test_a_server_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_API_KEY", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_clients([])
        warn_of_clients(["--host", "127.0.0.1,/run/infllm.sock", "--rpc", "localhost:1"])
        warn_of_clients(["--host", "0.0.0.0", "--api-key", "secret"])
        warn_of_clients(["--host", "0.0.0.0", "--api-key-file", "keys"])
        monkeypatch.setenv("LLAMA_API_KEY", "secret")
        warn_of_clients(["--host", "0.0.0.0"])
    monkeypatch.setenv("LLAMA_ARG_RPC", "gpu:2")
    with pytest.warns(UserWarning, match="rpc_servers: gpu:2"):
        warn_of_clients([])


def test_command_line(infllm: Run, model_path: Path) -> None:
    done = infllm("run", "-m", str(model_path), "-p", "x", "--rpc", f"0.0.0.0:{free_port()}")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("warning: rpc_servers: 0.0.0.0:") and "error: rpc_servers" in lines[-1]


@served.skipped
def test_serve(infllm: Run, model_path: Path) -> None:
    # an option that there is not ends it before it listens
    done = infllm("serve", "-m", str(model_path), "--host", "0.0.0.0", "--n-ctx", "512", "--no-such-option")
    assert done.returncode != 0
    assert "warning: host = 0.0.0.0 without --api-key" in done.stderr
