"""Methods side by side: how a context is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ..config import InfLLMConfig
from ..llama import Llama

METHODS = ("full", "full-q8_0", "full-q4_0", "infllm", "streaming")

_OF_SEARCH = ("search", "scores", "repr_topk", "n_score", "n_repr")


def used_by(method: str, config: InfLLMConfig) -> InfLLMConfig:
    """What a method uses of a configuration; the rest has its defaults."""
    if method.startswith("full"):
        return InfLLMConfig()
    if method == "streaming":
        default = InfLLMConfig()
        return dataclasses.replace(config, **{name: getattr(default, name) for name in _OF_SEARCH})
    return config


def load_method(method: str, path: Path, n_ctx: int, config: InfLLMConfig, **options: Any) -> Llama:
    """Make a context.

    Parameters
    ----------
    method : {"full", "full-q8_0", "full-q4_0", "infllm", "streaming"}
        ``"full"``: plain llama.cpp; the next two with its whole cache in that type. ``"infllm"``: the InfLLM
        memory. ``"streaming"``: init tokens and local window alone (StreamingLLM, arXiv 2309.17453), as many
        cells as the InfLLM memory with `config` has: its slots go to the local window, but for one that
        always holds the block after the init tokens, so that there are ``n_init + block_size`` attention
        sinks.
    path : pathlib.Path
        GGUF file.
    n_ctx : int
        Tokens.
    config : InfLLMConfig
        Of the InfLLM memory.
    **options
        As for `Llama`.
    """
    if method.startswith("full"):
        kv_type = method[5:]
        types = {"type_k": kv_type, "type_v": kv_type} if kv_type else {}
        return Llama(path, n_ctx=n_ctx, infllm=None, **{**options, **types})
    if method == "infllm":
        return Llama(path, n_ctx=n_ctx, infllm=config, **options)
    if method != "streaming":
        raise ValueError(f"method {method!r} is unknown: use {', '.join(METHODS)}")

    with Llama(path, n_ctx=n_ctx, infllm=config, **options) as llm:
        resolved = llm.infllm
    assert resolved is not None and resolved.max_cached_blocks is not None and resolved.n_local is not None
    streaming = dataclasses.replace(
        resolved,
        n_local=resolved.n_local + (resolved.max_cached_blocks - 1) * resolved.block_size,
        topk=1,
        max_cached_blocks=1,
    )
    llm = Llama(path, n_ctx=n_ctx, infllm=streaming, **options)
    llm._ctx.set_replay(np.zeros((1, 1, 1), dtype=np.int32))
    return llm
