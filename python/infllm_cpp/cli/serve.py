"""`infllm serve`: llama.cpp's server with the InfLLM memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import library_dir
from .._loading import (
    check_context,
    check_decoder,
    context_options,
    context_sizes,
    load_model,
    resolve_context,
)
from .._sizes import kv_bytes_per_token
from .._threads import default_n_threads
from ..config import InfLLMConfig
from .options import RunOptions

_N_CTX = 131072  # tokens of a sequence, where nothing else is asked for
SERVER = library_dir() / ("llama-server.exe" if os.name == "nt" else "llama-server")


def server_path() -> Path:
    """llama-server as it was built with this package.

    Raises
    ------
    FileNotFoundError
        When it was not.
    """
    if not SERVER.exists():
        raise FileNotFoundError(
            "llama-server is not part of this installation: install without "
            "-DINFLLM_BUILD_SERVER=OFF in CMAKE_ARGS"
        )
    return SERVER


def environment(config: InfLLMConfig | None) -> str:
    """The value of ``LLAMA_INFLLM`` that gives other programs the InfLLM memory; "0" without it.

    Raises
    ------
    ValueError
        When `store_path` has a comma, which ends a parameter there, or `budget` is in tokens, whose bytes
        depend on the model.
    """
    if config is None:
        return "0"
    try:
        config = config._in_bytes(None)
    except ValueError as err:
        raise ValueError(f"{err}: other programs can be told bytes alone") from None
    if "," in str(config.store_path):
        raise ValueError(f"store_path = {config.store_path!r} has a comma: a server cannot be told")
    return ",".join(f"{name}={value}" for name, value in config._changes().items()) or "1"


def server_arguments(
    options: RunOptions, parallel: int, host: str, port: int, folder: Path | None
) -> list[str]:
    """Arguments of llama-server for options of ours; errors as `Llama`, before a server is started.

    Parameters
    ----------
    options : RunOptions
        `n_ctx` is that of every sequence; 0: 131,072 tokens, or fewer where memory has no room for them.
    parallel : int
        Sequences.
    host, port : str, int
        Where it listens.
    folder : Path or None
        Of ``--slot-save-path``.
    """
    path = options.path()
    config = options.config()
    # a client that goes stops the computation after the batch at hand
    n_batch = options.batch(512 if options.device or options.rpc or options.n_gpu_layers else 256)
    types = check_context(options.n_ctx, n_batch, options.n_ubatch, options.type_k, options.type_v)
    model = load_model(path, no_alloc=True)
    check_decoder(model, str(path))
    base = context_options(n_batch, types, n_seq_max=parallel)
    n_ctx = options.n_ctx
    if n_ctx == 0 and config is None:
        n_ctx = model.n_ctx_train()
    elif n_ctx == 0:
        assert config is not None
        limit = context_sizes(model, config, options.n_ubatch, base).limit
        n_ctx = min(_N_CTX, limit // parallel // 256 * 256)
    n_ubatch = resolve_context(model, config, n_ctx, options.n_ubatch, base).n_ubatch
    arguments = {
        "--model": path,
        "--alias": model.meta().get("general.name", path.stem),
        "--ctx-size": n_ctx * parallel,
        "--parallel": parallel,
        "--batch-size": n_batch,
        "--ubatch-size": n_ubatch,
        "--cache-type-k": types[0],
        "--cache-type-v": types[1],
        "--threads": options.n_threads or default_n_threads(),
        "--n-gpu-layers": options.n_gpu_layers,
        "--device": ",".join(options.device) if options.device else None,
        "--rpc": ",".join(options.rpc) if options.rpc else None,
        "--tensor-split": options.tensor_split,
        "--slot-save-path": folder,
        "--host": host,
        "--port": port,
    }
    out = [str(part) for item in arguments.items() if item[1] is not None for part in item]
    return [*out, "--no-kv-unified", "--metrics", "--log-verbosity", "4" if options.verbose else "3"]


def server_config(options: RunOptions) -> InfLLMConfig | None:
    """The InfLLM memory that the options ask for, as another program can be told."""
    config = options.config()
    if config is None:
        return None
    if not config._is_in_tokens():
        return config._in_bytes(None)
    types = check_context(options.n_ctx, options.batch(), options.n_ubatch, options.type_k, options.type_v)
    return config._in_bytes(kv_bytes_per_token(load_model(options.path(), no_alloc=True), *types))


def serve(arguments: Sequence[str], config: InfLLMConfig | None) -> int:
    """Run llama-server until it ends, and return its exit code.

    Parameters
    ----------
    arguments : sequence of str
        Of llama-server.
    config : InfLLMConfig or None
        The InfLLM memory; ``None``: plain llama.cpp.
    """
    command = [str(server_path()), *arguments]
    env = {**os.environ, "LLAMA_INFLLM": environment(config)}
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        os.execve(command[0], command, env)  # signals reach it as they are sent
    process = subprocess.Popen(command, env=env)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return process.wait()
