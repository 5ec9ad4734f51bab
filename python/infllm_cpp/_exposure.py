"""Warnings where what is computed leaves this machine, or others may come in."""

from __future__ import annotations

import ipaddress
import os
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise


def is_loopback(host: str) -> bool:
    """Whether an address, or a path of a socket (``*.sock``), is of this machine alone.

    A name is not, but for ``localhost``: whatever it means now, it may mean another machine tomorrow.
    """
    if host == "localhost" or host.endswith(".sock"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def warn_of_servers(servers: Iterable[str], stacklevel: int = 2) -> None:
    """Warn of RPC servers ``host:port`` on other machines."""
    remote = [server for server in servers if not is_loopback(server.rpartition(":")[0])]
    if remote:
        warnings.warn(
            f"rpc_servers: {', '.join(remote)}: llama.cpp's RPC is neither encrypted nor authenticated; "
            "whoever is on the network between can read and change the text and the model, so use it only "
            "where nobody else is, or through a tunnel (ssh -L)",
            stacklevel=stacklevel + 1,
        )


def warn_of_clients(arguments: Sequence[str], stacklevel: int = 2) -> None:
    """Warn where llama-server, with these arguments, is open to everybody; of its RPC servers, too."""
    given = dict(pairwise(arguments))  # the last one counts
    hosts = [host.strip() for host in given.get("--host", "127.0.0.1").split(",")]
    remote = [host for host in hosts if not is_loopback(host)]
    has_key = {"--api-key", "--api-key-file"} & given.keys() or os.environ.get("LLAMA_API_KEY")
    if remote and not has_key:
        warnings.warn(
            f"host = {', '.join(remote)} without --api-key: whoever reaches this address can use the model, "
            "and read and delete what it keeps of others' texts; give a key, or listen on 127.0.0.1",
            stacklevel=stacklevel + 1,
        )
    servers = given.get("--rpc", os.environ.get("LLAMA_ARG_RPC", ""))
    warn_of_servers(filter(None, servers.split(",")), stacklevel + 1)
