"""Making models and contexts: for `Llama`, and for `infllm info`."""

from __future__ import annotations

import copy
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from . import _core
from ._sizes import ContextSizes, context_limit, kv_bytes_per_token
from .config import PARTS, InfLLMConfig
from .models import check_gguf

KVType = Literal["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]

# their numbers in ggml.h
_KV_NUMBERS: dict[int, KVType] = {
    1: "f16",
    2: "q4_0",
    3: "q4_1",
    6: "q5_0",
    7: "q5_1",
    8: "q8_0",
    20: "iq4_nl",
    30: "bf16",
}

_N_UBATCH = 512

_NO_TEXT = (
    "{} is not a decoder-only model: it cannot generate text here (embeddings: embedding=True, infllm=None)"
)


def load_model(path: str | os.PathLike[str], **options: Any) -> _core.Model:
    """Load a GGUF file.

    Parameters
    ----------
    path : str or os.PathLike
    **options
        Of `_core.ModelOptions`; with ``no_alloc=True`` metadata and vocabulary alone are loaded.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError, ValueError, DeviceLostError
        As `Llama`.
    """
    _core.process_check()
    path = os.path.expanduser(path)
    check_gguf(path)
    values = _core.ModelOptions()
    _set(values, options)
    try:
        return _core.Model(str(Path(path)), values)
    except _core.DeviceLostError:
        raise
    except RuntimeError as err:
        raise ValueError(
            f"{os.fspath(path)} cannot be loaded: {_reason(str(err))} (is the file complete, and a model?)"
        ) from None


def context_options(n_batch: int, types: tuple[KVType, KVType], **values: Any) -> _core.ContextOptions:
    """What contexts of any length have in common: `types` of K and V, `values` of `_core.ContextOptions`."""
    res = _core.ContextOptions()
    res.n_batch = n_batch
    res.type_k, res.type_v = types
    _set(res, values)
    return res


def resolve_context(
    model: _core.Model,
    config: InfLLMConfig | None,
    n_ctx: int,
    n_ubatch: int | None,
    base: _core.ContextOptions,
) -> _core.ContextOptions:
    """The options of a context of `n_ctx` tokens, with automatic values filled in.

    Raises
    ------
    ValueError
        When the parameters cannot work.
    """
    res = copy.copy(base)
    res.n_ctx = n_ctx
    n_ubatch_auto = min(_N_UBATCH, res.n_batch)
    if config is not None:
        res.infllm = config._to_params(kv_bytes_per_token(model, base.type_k, base.type_v))
        if n_ubatch is None:
            # the local window is known only when resolved, and bounds n_ubatch
            res.n_ubatch = 1
            n_ubatch_auto = min(n_ubatch_auto, model.infllm_resolve(res).n_local)
    res.n_ubatch = min(n_ubatch or n_ubatch_auto, res.n_batch)
    if config is not None:
        res.infllm = model.infllm_resolve(res)
    return res


def divide_budget(
    model: _core.Model, config: InfLLMConfig, n_ctx: int, n_ubatch: int | None, base: _core.ContextOptions
) -> InfLLMConfig:
    """`config` with its budget divided, for all contexts to come: the memory that is free changes.

    Raises
    ------
    ValueError
        When the parameters cannot work.
    """
    if config._is_divided():
        return config
    params = resolve_context(model, config, n_ctx, n_ubatch, base).infllm
    return replace(config, budget="auto", **{name: getattr(params, name) for name in PARTS})


def context_sizes(
    model: _core.Model, config: InfLLMConfig, n_ubatch: int | None, base: _core.ContextOptions
) -> ContextSizes:
    """What ``n_ctx=0`` means with the method; ValueError when the parameters cannot work at any length."""
    n_ctx_train = model.n_ctx_train(base)

    def limit(n_ctx: int) -> int:
        options = resolve_context(model, config, n_ctx, n_ubatch, base)
        assert options.infllm is not None
        n_cells = _core.infllm_n_cells(options.infllm, options.n_ubatch)
        return context_limit(
            model, options.infllm, n_cells, options.type_k, options.type_v, options.n_seq_max
        )

    n_max = limit(n_ctx_train)
    if n_max > n_ctx_train:
        try:
            n_max = limit(n_max)
        except ValueError:
            # such as a window that leaves no room for positions below the training length
            n_max = n_ctx_train
    return ContextSizes(n_ctx_train, n_max)


def check_positions(model: _core.Model, n_ctx: int) -> None:
    """ValueError where `n_ctx` is more than a model with embeddings of positions has them for."""
    if n_ctx > model.n_pos_max():
        raise ValueError(
            f"n_ctx = {n_ctx} is more than the model has embeddings of positions for: {model.n_pos_max()}"
        )


def make_context(model: _core.Model, options: _core.ContextOptions) -> _core.Context:
    """A context with the method if there are parameters of it, else without it. Errors: see `Llama`."""
    n_ctx = options.n_ctx
    check_positions(model, n_ctx)
    try:
        ctx = _core.Context(model, options)
    except _core.DeviceLostError:
        raise
    except RuntimeError as err:
        reason = _reason(str(err))
        if "alloc" in reason:
            raise MemoryError(f"n_ctx = {n_ctx} needs more memory than there is ({reason})") from None
        raise RuntimeError(f"no context of n_ctx = {n_ctx} can be made: {reason}") from None
    if not ctx.has_memory() and not options.embedding:
        raise ValueError(_NO_TEXT.format("the model"))
    return ctx


def _set(options: object, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(options, name, value)


def _reason(log: str) -> str:
    """The one line of llama.cpp's log that says why."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if not lines:
        return "no reason was given"
    # the deepest function speaks first, and begins with its name; what libllama says by itself does not
    line = re.sub(r"^[A-Za-z_][\w:]*: ", "", lines[0])
    for prefix in ("error loading model: ", "failed to initialize the context: "):
        line = line.removeprefix(prefix)
    return line


def check_context(
    n_ctx: int, n_batch: int, n_ubatch: int | None, type_k: str | int | None, type_v: str | int | None
) -> tuple[KVType, KVType]:
    """Types of K and V; ValueError or TypeError where a parameter is out of range for any model."""
    check_int("n_ctx", n_ctx, 0, 2**31 - 1)
    check_int("n_batch", n_batch, 1, 2**31 - 1)
    check_int("n_ubatch", n_ubatch, 1, 2**31 - 1)
    return check_kv_type("type_k", type_k), check_kv_type("type_v", type_v)


def check_decoder(model: _core.Model, path: str) -> None:
    """ValueError unless a model can generate text here."""
    if not model.has_decoder() or model.has_encoder():
        raise ValueError(_NO_TEXT.format(path))


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """TypeError or ValueError naming `name`, unless `value` is None or a number within the limits."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} = {value!r} is not a number")
    if not low <= value <= high:
        raise ValueError(f"{name} = {value} is out of range: use a value from {low} to {high}")


def check_int(name: str, value: int | None, low: float = float("-inf"), high: float = float("inf")) -> None:
    """TypeError or ValueError naming `name`, unless `value` is None or an integer within the limits."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} = {value!r} is not an integer")
    check_range(name, value, low, high)


def check_kv_type(name: str, value: str | int | None) -> KVType:
    """The type that `value` names, by its number in ggml.h, too; ValueError naming `name` otherwise."""
    if value is None:
        return "f16"
    if isinstance(value, int) and value in _KV_NUMBERS:
        return _KV_NUMBERS[value]
    if value in get_args(KVType):
        return cast(KVType, value)
    raise ValueError(f"{name} = {value!r} is unknown: use one of {', '.join(get_args(KVType))}")
