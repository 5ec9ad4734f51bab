"""How much memory a context takes."""

from __future__ import annotations

from . import _core

# bytes of 32 values
_BYTES_32 = {"f16": 64, "q8_0": 34, "q4_0": 18}


def kv_bytes_per_token(model: _core.Model, type_k: str, type_v: str) -> float:
    """Bytes of K and V of one token in all layers, from the metadata of the GGUF.

    Models whose layers differ are taken to be like their first layer.
    """
    meta = model.meta()
    arch = meta["general.architecture"]
    head_dim = model.n_embd() // model.n_head()
    n_k = int(meta.get(f"{arch}.attention.key_length", head_dim)) * model.n_head_kv()
    n_v = int(meta.get(f"{arch}.attention.value_length", head_dim)) * model.n_head_kv()
    return model.n_layer() * (n_k * _BYTES_32[type_k] + n_v * _BYTES_32[type_v]) / 32
