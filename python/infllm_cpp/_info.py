"""`infllm info`."""

from __future__ import annotations

from . import _core
from . import _terminal as term
from ._loading import check_context, check_decoder, context_sizes, load_model, resolve_infllm
from ._options import ModelOptions
from ._sizes import context_bytes, kv_bytes_per_token
from ._system import available_memory
from .config import InfLLMConfig


def print_info(options: ModelOptions) -> None:
    """Print what the model is and what a context would need."""
    type_k, type_v = check_context(
        options.n_ctx, options.n_batch, options.n_ubatch, options.type_k, options.type_v
    )
    path = options.path()
    model = load_model(path, no_alloc=True)
    meta = model.meta()
    n_ctx_train = model.n_ctx_train()
    per_token = kv_bytes_per_token(model, type_k, type_v)

    _row("file", str(path))
    _row("name", meta.get("general.name", ""))
    _row("architecture", meta["general.architecture"])
    _row(
        "size",
        f"{model.desc()}, {model.n_params() / 1e6:,.0f} M parameters, {term.format_bytes(model.size())}",
    )
    _row("attention", f"{model.n_layer()} layers, {model.n_head()} heads, {model.n_head_kv()} KV heads")
    _row("training length", f"{n_ctx_train:,} tokens")
    _row("chat template", "yes" if model.chat_template() else "no")
    try:
        check_decoder(model, str(path))
    except ValueError as err:
        _row("contexts", f"not possible: {err}")
        return
    if per_token:
        n_plain = options.n_ctx or n_ctx_train
        _row("K and V", f"{per_token:,.0f} bytes per token ({type_k}, {type_v})")
        _row("plain llama.cpp", f"{term.format_bytes(n_plain * per_token)} resident for n_ctx = {n_plain:,}")

    config = options.config()
    if config is not None:
        try:
            _print_memory(options, model, config)
        except ValueError as err:
            _row("InfLLM memory", f"not possible: {err}")


def _row(name: str, value: str) -> None:
    print(f"{name:<15}  {value}")


def _print_memory(options: ModelOptions, model: _core.Model, config: InfLLMConfig) -> None:
    type_k, type_v = check_context(
        options.n_ctx, options.n_batch, options.n_ubatch, options.type_k, options.type_v
    )
    sizes = context_sizes(model, config, options.n_batch, options.n_ubatch, type_k, type_v)
    n_ctx = options.n_ctx or sizes.limit
    params, n_ubatch = resolve_infllm(model, config, n_ctx, options.n_batch, options.n_ubatch, type_k, type_v)
    assert params is not None
    size = context_bytes(model, params, n_ctx, n_ubatch, type_k, type_v)
    used = InfLLMConfig._from_params(params)
    _row(
        "InfLLM memory",
        f"{term.format_bytes(size.resident)} resident ({size.n_cells:,} cells), "
        f"{term.format_bytes(size.repr)} of representative keys, "
        f"{term.format_bytes(size.store)} in the store, for n_ctx = {n_ctx:,}",
    )
    _row(
        "",
        f"n_init {used.n_init}, n_local {used.n_local}, block_size {used.block_size}, "
        f"topk {used.topk}, max_cached_blocks {used.max_cached_blocks}, position {used.position}",
    )

    available = available_memory()
    has = (
        "memory that the system does not tell"
        if available is None
        else (f"{term.format_bytes(available)} available")
    )
    if used.store_max_bytes:
        has += f", store_max_bytes = {term.format_bytes(used.store_max_bytes)}"
    verdict = f"room for {sizes.limit:,} tokens"
    if n_ctx > sizes.limit:
        verdict += f": n_ctx = {n_ctx:,} are more, so that reading them all would fail"
    _row("memory", f"{has}: {verdict}")
