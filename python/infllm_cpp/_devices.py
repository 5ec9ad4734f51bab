"""Which devices hold the layers of a model: GPUs of this machine, and of RPC servers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import _core
from ._choices import SPLIT_MODES, choice
from ._exposure import warn_of_servers
from ._loading import check_int

_TIMEOUT = 10.0  # seconds until a server has to answer

_known: set[str] = set()  # servers that did: each serves one process at a time, and may be serving this one

# A server that does not speak the protocol of this build makes ggml abort, so it is tried in another process.
_PROBE = "import sys; from infllm_cpp import _core; _core.rpc_devices(sys.argv[1])"


def choose_devices(
    n_gpu_layers: int | None, devices: Sequence[str] | None, rpc_servers: Sequence[str]
) -> tuple[int, list[str] | None]:
    """Resolve the arguments of `Llama` of these names.

    Returns
    -------
    n_gpu_layers : int
        Layers on devices; -1: all.
    names : list of str or None
        The devices, those of the servers first; None: all of this machine, as llama.cpp orders them.

    Raises
    ------
    ValueError
        When a device is unknown, an address is malformed, or devices are given but no layers for them.
    RuntimeError
        When layers are to be on a device and there is none.
    ConnectionError
        When a server cannot be reached, or is none.
    """
    if isinstance(devices, str) or isinstance(rpc_servers, str):
        raise TypeError("devices and rpc_servers are lists of names, not a string")
    chosen = bool(devices) or bool(rpc_servers)
    if n_gpu_layers is None:
        n_gpu_layers = -1 if chosen else 0
    if n_gpu_layers == 0:
        if chosen:
            raise ValueError(
                "n_gpu_layers = 0 leaves no layers for devices and rpc_servers: raise it, or give none"
            )
        return 0, None

    local = [device.name for device in _core.local_devices()]
    for name in devices or []:
        if name not in local:
            raise ValueError(f"devices: {name!r} is unknown: this machine has {', '.join(local) or 'none'}")
    for server in rpc_servers:
        _address(server)
    warn_of_servers(rpc_servers, stacklevel=3)
    names = [device.name for server in rpc_servers for device in _rpc_devices(server)]
    names += local if devices is None else devices
    if not names:
        raise RuntimeError(
            f"n_gpu_layers = {n_gpu_layers}, but no GPU was found: use n_gpu_layers = 0, or check its driver "
            'and install with its backend, such as CMAKE_ARGS="-DGGML_CUDA=ON" pip install'
        )
    return n_gpu_layers, names if chosen else None


def choose_split(
    split_mode: str | int | None, main_gpu: int, names: list[str] | None, infllm: bool
) -> tuple[int, int]:
    """Resolve `split_mode` and `main_gpu` of `Llama`, for the names that `choose_devices` returned.

    Returns
    -------
    split_mode, main_gpu : int
        For ``llama_model_params``. Where there is nothing to split, whole layers.

    Raises
    ------
    TypeError, ValueError
        When one is unknown or out of range, `main_gpu` has no effect, or `infllm`, the InfLLM memory, cannot
        have layers so split.
    """
    mode = choice("split_mode", split_mode, SPLIT_MODES, SPLIT_MODES["layer"])
    check_int("main_gpu", main_gpu, 0, 2**31 - 1)
    if infllm and mode in (SPLIT_MODES["row"], SPLIT_MODES["tensor"]):
        raise ValueError(
            f"split_mode = {split_mode!r} cuts layers into pieces, but the InfLLM memory keeps K and V of a "
            "layer on one device: use split_mode = 'layer', or infllm = None"
        )
    if main_gpu != 0 and mode in (SPLIT_MODES["layer"], SPLIT_MODES["tensor"]):
        raise ValueError(
            f"main_gpu = {main_gpu} has no effect with split_mode = {split_mode!r}: use split_mode = 'none'"
        )
    if names is None:
        names = [device.name for device in _core.local_devices()]
    if main_gpu >= max(1, len(names)):
        raise ValueError(
            f"main_gpu = {main_gpu} is out of range: the devices are {', '.join(names) or 'none, use 0'}"
        )
    return (mode if names else SPLIT_MODES["layer"]), main_gpu


def _address(server: str) -> tuple[str, int]:
    host, colon, port = server.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"rpc_servers: {server!r} is not an address: use host:port, such as 127.0.0.1:50052")
    return host, int(port)


def _rpc_devices(server: str) -> list[_core.DeviceInfo]:
    try:
        socket.create_connection(_address(server), timeout=_TIMEOUT).close()
    except OSError as err:
        raise ConnectionError(
            f"rpc_servers: {server} cannot be reached ({err}): is ggml-rpc-server running there?"
        ) from None

    if server in _known:
        return _core.rpc_devices(server)
    package_dir = str(Path(_core.__file__).absolute().parent.parent)
    path = os.pathsep.join(filter(None, [package_dir, os.environ.get("PYTHONPATH")]))
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE, server],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise ConnectionError(
            f"rpc_servers: {server} does not answer: is it a ggml-rpc-server, and free of other clients?"
        ) from None
    if probe.returncode != 0:
        lines = probe.stderr.strip().splitlines()
        why = lines[-1].removeprefix("RuntimeError: ") if lines else f"exit code {probe.returncode}"
        if "no RPC backend" in why:
            raise RuntimeError(why)
        raise ConnectionError(
            f"rpc_servers: {server} is not a server of this build's protocol: run the ggml-rpc-server "
            f"that was built with it ({why})"
        )
    _known.add(server)
    return _core.rpc_devices(server)
