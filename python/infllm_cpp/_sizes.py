"""How much memory a context takes."""

from __future__ import annotations

from . import _core
from .config import CHOICES

# bytes of 32 values
_BYTES_32 = {"f16": 64, "q8_0": 34, "q4_0": 18}


def kv_values_per_token(model: _core.Model) -> tuple[int, int]:
    """Values of K and of V of one token in all layers, from the metadata of the GGUF.

    Models whose layers differ are taken to be like their first layer.
    """
    meta = model.meta()
    arch = meta["general.architecture"]
    head_dim = model.n_embd() // model.n_head()
    n_k = int(meta.get(f"{arch}.attention.key_length", head_dim)) * model.n_head_kv()
    n_v = int(meta.get(f"{arch}.attention.value_length", head_dim)) * model.n_head_kv()
    return model.n_layer() * n_k, model.n_layer() * n_v


def kv_bytes_per_token(model: _core.Model, type_k: str, type_v: str) -> float:
    """Bytes of K and V of one token in all layers."""
    n_k, n_v = kv_values_per_token(model)
    return (n_k * _BYTES_32[type_k] + n_v * _BYTES_32[type_v]) / 32


def repr_bytes(model: _core.Model, params: _core.InfLLMParams, n_ctx: int, n_cells: int) -> int:
    """Bytes of the representative keys of all blocks that a context can store, in F16."""
    if n_ctx <= n_cells:
        return 0
    n_blocks = (n_ctx - params.n_init) // params.block_size + 1
    n_group = model.n_head() // model.n_head_kv() if CHOICES["scores"][params.scores] == "published" else 1
    n_k = kv_values_per_token(model)[0]
    if CHOICES["search"][params.search] == "keys":  # every third layer has them
        n_k = n_k // model.n_layer() * -(-model.n_layer() // 3)
    return 2 * params.n_repr * n_group * n_k * -(-n_blocks // 64) * 64
