"""`infllm info`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from .. import _core
from .._devices import choose_devices
from .._format import format_bytes, visible
from .._loading import (
    KVType,
    check_context,
    check_decoder,
    context_options,
    context_sizes,
    load_model,
    make_context,
    resolve_context,
)
from .._sessions import open_session
from .._sizes import context_bytes, kv_bytes_by_device, kv_bytes_per_token
from .._system import available_memory
from ..config import InfLLMConfig
from . import terminal as term
from .conversation import Conversation
from .options import ModelOptions

_N_CTX_TRIED = 4096  # tokens: whether a context can be made does not depend on more


def print_info(options: ModelOptions) -> None:
    """Print what the model is and what a context would need, or why it cannot be made."""
    types = check_context(options.n_ctx, options.batch(), options.n_ubatch, options.type_k, options.type_v)
    config = options.config()
    path = options.path()
    devices = options.device_options()
    tensor_split = devices.pop("tensor_split") or ()
    n_gpu_layers, names = choose_devices(**devices)
    model = load_model(
        path, no_alloc=True, n_gpu_layers=n_gpu_layers, devices=names, tensor_split=tensor_split
    )
    meta = model.meta()
    n_ctx_train = model.n_ctx_train()

    _row("file", str(path))
    _row("name", meta.get("general.name", ""))
    _row("architecture", meta["general.architecture"])
    _row(
        "size",
        f"{model.desc()}, {model.n_params() / 1e6:,.0f} M parameters, {format_bytes(model.size())}",
    )
    n_full, _, _ = model.kv_layers()
    layers = f"{model.n_layer()} layers"
    if 0 < n_full < model.n_layer():
        layers += f", {n_full} of them to all tokens"
    _row("attention", f"{layers}, {model.n_head()} heads, {model.n_head_kv()} KV heads")
    _row("training length", f"{n_ctx_train:,} tokens")
    _row("chat template", "yes" if model.chat_template() else "no")
    if per_token := kv_bytes_per_token(model, *types):
        _row("K and V", f"{per_token:,.0f} bytes per token ({types[0]}, {types[1]})")

    memories: dict[str, Callable[[], None]] = {"plain llama.cpp": lambda: _print_plain(options, model, types)}
    if config is not None:
        memories["InfLLM memory"] = lambda: _print_memory(options, model, config, types)
    for name, print_row in memories.items():
        try:
            check_decoder(model, str(path))
            print_row()
        except (ValueError, RuntimeError, MemoryError) as err:
            _row(name, f"not possible: {err}")


def print_session(path: Path, verify: bool) -> None:
    """Print what a session file has; ValueError where it is damaged."""
    session, notes = open_session(path)
    info = session.info()
    _row("file", str(path))
    _row("model", f"{notes.model_name}, {notes.model_path}")
    _row("tokens", f"{info.n_tokens:,}")
    _row(
        "size",
        f"{format_bytes(info.bytes)}: {info.n_blocks:,} blocks, "
        f"{format_bytes(info.bytes_state)} of resident state; saved {info.n_saved} times",
    )
    _row("types", f"K {notes.types[0]}, V {notes.types[1]}")
    _row("parameters", ", ".join(f"{name} {value}" for name, value in notes.config.items()))
    if Conversation.is_data(notes.data):
        chat = Conversation.from_data(notes.data)
        _row("chat", f"{chat.n_questions()} questions, and {len(chat.files):,} characters to ask about")
    if verify:
        with term.console.status("reading all blocks"):
            session.verify()
        _row("verified", "all blocks are as they were saved")


def _row(name: str, value: str) -> None:
    print(f"{name:<15}  {visible(value)}")  # some of it is a file's, which may be anybody's


def _try_context(model: _core.Model, options: _core.ContextOptions) -> None:
    """Make the context, which takes no memory as the weights are not loaded: what refuses it raises."""
    tried = copy.copy(options)
    tried.n_ctx = min(tried.n_ctx, _N_CTX_TRIED)
    make_context(model, tried)


def _exact(plan: _core.InfLLMPlan, n_ctx: int, n_cells: int) -> str:
    """Up to where all tokens are resident, and why not further."""
    reasons = {
        0: "n_local, topk or max_cached_blocks are given",
        1: f"the budget is {format_bytes(n_cells * plan.bytes_cell)}",
        2: "n_ctx is no more",
        3: f"the training length is {plan.n_cells_train:,} tokens",
        4: "by the profile attention should not read more than "
        f"{format_bytes(plan.n_cells_speed * plan.bytes_cell)} for a token",
        5: f"there is memory for {plan.n_cells_memory:,} tokens (profile = fast is the least)",
    }
    return f"up to {min(n_ctx, n_cells):,} tokens as llama.cpp, bit for bit: {reasons[plan.limit]}"


def _speed(plan: _core.InfLLMPlan, n_cells: int) -> str:
    """What a token reads: that takes the time of decoding where memory is the limit."""
    attention = n_cells * plan.bytes_cell
    share = plan.bytes_weights / (plan.bytes_weights + attention)
    return (
        f"a token reads {format_bytes(plan.bytes_weights)} of weights and, when the context is full, "
        f"{format_bytes(attention)} of K and V: {share:.0%} of the speed with an empty context"
    )


def _print_plain(options: ModelOptions, model: _core.Model, types: tuple[KVType, KVType]) -> None:
    n_ctx = options.n_ctx or model.n_ctx_train()
    base = context_options(options.batch(), types)
    _try_context(model, resolve_context(model, None, n_ctx, options.n_ubatch, base))
    if per_token := kv_bytes_per_token(model, *types):
        _row("plain llama.cpp", f"{format_bytes(n_ctx * per_token)} resident for n_ctx = {n_ctx:,}")


def _print_memory(
    options: ModelOptions, model: _core.Model, config: InfLLMConfig, types: tuple[KVType, KVType]
) -> None:
    base = context_options(options.batch(), types)
    sizes = context_sizes(model, config, options.n_ubatch, base)
    n_ctx = options.n_ctx or sizes.limit
    resolved = resolve_context(model, config, n_ctx, options.n_ubatch, base)
    params = resolved.infllm
    assert params is not None
    _try_context(model, resolved)

    size = context_bytes(model, params, n_ctx, resolved.n_ubatch, *types)
    used = InfLLMConfig._from_params(params)
    _row(
        "InfLLM memory",
        f"{format_bytes(size.resident)} resident ({size.n_cells:,} cells), "
        f"{format_bytes(size.repr)} of representative keys, "
        f"{format_bytes(size.store)} in the store, for n_ctx = {n_ctx:,}",
    )
    asked = copy.copy(resolved)
    asked.infllm = config._to_params(kv_bytes_per_token(model, *types))
    plan = model.infllm_plan(asked)
    _row("exact", _exact(plan, n_ctx, size.n_cells))
    _row("speed", _speed(plan, min(n_ctx, size.n_cells)))
    _row(
        "",
        f"n_init {used.n_init}, n_local {used.n_local}, block_size {used.block_size}, "
        f"topk {used.topk}, max_cached_blocks {used.max_cached_blocks}, position {used.position}",
    )

    by_device = kv_bytes_by_device(model, *types)
    if list(by_device) != ["CPU"]:
        for name, (n_layer, per_cell) in by_device.items():
            _row(f"on {name}", f"{n_layer} layers, {format_bytes(size.n_cells * per_cell)} resident")

    available = available_memory()
    has = "unknown" if available is None else f"{format_bytes(available)} available"
    if used.store_max_bytes:
        has += f", store_max_bytes = {format_bytes(used.store_max_bytes)}"
    if used.store_path:
        has += f", and the disk of store_path = {used.store_path}"
    room = f"room for {sizes.limit:,} tokens"
    if n_ctx > sizes.limit:
        room += f": n_ctx = {n_ctx:,} is more than fits, the store alone would take "
        room += format_bytes(size.store)
    _row("memory", f"{has}: {room}")
