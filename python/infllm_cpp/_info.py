"""`infllm info`."""

from __future__ import annotations

from . import _core
from . import _terminal as term
from ._loading import check_kv_type, load_model, resolve_infllm
from ._options import ModelOptions
from ._sizes import kv_bytes_per_token, repr_bytes
from .config import InfLLMConfig


def print_info(options: ModelOptions) -> None:
    """Print what the model is and what a context would need."""
    type_k, type_v = check_kv_type("type_k", options.type_k), check_kv_type("type_v", options.type_v)
    path = options.path()
    model = load_model(path, no_alloc=True)
    meta = model.meta()
    n_ctx_train = model.n_ctx_train()
    n_ctx = options.n_ctx_or_default() or n_ctx_train
    per_token = kv_bytes_per_token(model, type_k, type_v)

    def row(name: str, value: str) -> None:
        print(f"{name:<15}  {value}")

    row("file", str(path))
    row("name", meta.get("general.name", ""))
    row("architecture", meta["general.architecture"])
    row(
        "size",
        f"{model.desc()}, {model.n_params() / 1e6:,.0f} M parameters, {term.format_bytes(model.size())}",
    )
    row("attention", f"{model.n_layer()} layers, {model.n_head()} heads, {model.n_head_kv()} KV heads")
    row("training length", f"{n_ctx_train:,} tokens")
    row("chat template", "yes" if model.chat_template() else "no")
    row("K and V", f"{per_token:,.0f} bytes per token ({type_k}, {type_v})")
    row("plain llama.cpp", f"{term.format_bytes(n_ctx * per_token)} resident for n_ctx = {n_ctx:,}")

    config = options.config()
    if config is not None:
        try:
            params, n_ubatch = resolve_infllm(
                model, config, n_ctx, options.n_batch, options.n_ubatch, type_k, type_v
            )
        except ValueError as err:
            row("InfLLM memory", f"not possible: {err}")
        else:
            assert params is not None
            # llama.cpp allocates cells by 256, for its flash attention
            n_cells = -(-min(_core.infllm_n_cells(params, n_ubatch), n_ctx) // 256) * 256
            n_store = max(0, n_ctx - params.n_init - params.n_local)
            used = InfLLMConfig._from_params(params)
            row(
                "InfLLM memory",
                f"{term.format_bytes(n_cells * per_token)} resident ({n_cells:,} cells), "
                f"{term.format_bytes(repr_bytes(model, params, n_ctx, n_cells))} of representative keys, "
                f"{term.format_bytes(n_store * per_token)} in the store, for n_ctx = {n_ctx:,}",
            )
            row(
                "",
                f"n_init {used.n_init}, n_local {used.n_local}, block_size {used.block_size}, "
                f"topk {used.topk}, max_cached_blocks {used.max_cached_blocks}, position {used.position}",
            )
