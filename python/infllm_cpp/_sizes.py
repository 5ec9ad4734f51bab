"""How much memory a context takes, and how long one can be."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from . import _core
from ._system import available_memory
from .config import CHOICES

_N_PAD = 256  # llama.cpp rounds n_ctx up to a multiple
_N_CTX_MAX = 2**31 - _N_PAD
_N_FIRST = 2**18  # tokens: up to here no parameter depends on how far a context is beyond the training length

# bytes of 32 values
_BYTES_32 = {
    "f16": 64,
    "bf16": 64,
    "q8_0": 34,
    "q5_1": 24,
    "q5_0": 22,
    "q4_1": 20,
    "q4_0": 18,
    "iq4_nl": 18,
}


def kv_bytes_per_token(model: _core.Model, type_k: str, type_v: str) -> float:
    """Bytes of K and V of one token in all layers that attend to all tokens."""
    _, n_k, n_v = model.kv_layers()
    return _kv_bytes(n_k, n_v, type_k, type_v)


def kv_bytes_by_device(model: _core.Model, type_k: str, type_v: str) -> dict[str, tuple[int, float]]:
    """The layers that a device has of these, and their bytes per token, by its name."""
    return {
        name: (n_layer, _kv_bytes(n_k, n_v, type_k, type_v)) for name, n_layer, n_k, n_v in model.kv_devices()
    }


def _kv_bytes(n_k: int, n_v: int, type_k: str, type_v: str) -> float:
    return (n_k * _BYTES_32[type_k] + n_v * _BYTES_32[type_v]) / 32


def store_bytes_per_token(model: _core.Model, params: _core.InfLLMParams, type_k: str, type_v: str) -> float:
    """The same in the store, which may have a type of its own."""
    name = CHOICES["type_store"][params.type_store]
    return kv_bytes_per_token(model, *((type_k, type_v) if name == "auto" else (name, name)))


def repr_bytes(model: _core.Model, params: _core.InfLLMParams, n_ctx: int, n_cells: int) -> int:
    """Bytes of the representative keys of all blocks that a context can store, in F16."""
    if n_ctx <= n_cells:
        return 0
    return model.infllm_repr_bytes(params, (n_ctx - params.n_init) // params.block_size + 1)


@dataclass(frozen=True)
class ContextBytes:
    """What a context with the InfLLM memory takes when it is full, bytes; cells of its resident buffer."""

    n_cells: int
    resident: float
    repr: int
    store: float


def context_bytes(
    model: _core.Model, params: _core.InfLLMParams, n_ctx: int, n_ubatch: int, type_k: str, type_v: str
) -> ContextBytes:
    """Sizes for resolved parameters."""
    per_token = kv_bytes_per_token(model, type_k, type_v)
    n_cells = -(-min(_core.infllm_n_cells(params, n_ubatch), n_ctx) // _N_PAD) * _N_PAD
    return ContextBytes(
        n_cells=n_cells,
        resident=n_cells * per_token,
        repr=repr_bytes(model, params, n_ctx, n_cells),
        store=max(0, n_ctx - params.n_init - params.n_local)
        * store_bytes_per_token(model, params, type_k, type_v),
    )


def context_limit(
    model: _core.Model, params: _core.InfLLMParams, n_cells: int, type_k: str, type_v: str, n_seq: int = 1
) -> int:
    """Tokens that a context can hold: by memory, `store_max_bytes` and the disk of `store_path`.

    Counted are the weights, which may not be in memory yet, the resident buffer, and K, V and representative
    keys of every token. An eighth of what is available, on disk too, is left to everything else.

    Parameters
    ----------
    model : Model
    params : InfLLMParams
        Resolved.
    n_cells : int
        Cells of the resident buffer.
    type_k, type_v : str
        Types of K and V.
    n_seq : int
        Sequences, each with a resident buffer; the tokens are those of all.

    Returns
    -------
    int
        A multiple of 256, at least `n_cells`; 2**31 - 256 where the system does not tell its memory.
    """
    per_cell = kv_bytes_per_token(model, type_k, type_v)
    per_token = store_bytes_per_token(model, params, type_k, type_v)
    n_max = float(_N_CTX_MAX)
    on_disk = shutil.disk_usage(params.store_path).free * 7 / 8 if os.path.isdir(params.store_path) else 0
    if params.store_max_bytes:
        # a block has a few bytes beside K and V
        n_max = params.n_init + params.n_local + (params.store_max_bytes + on_disk) / (1.02 * per_token)
    available = available_memory()
    if available is not None:
        n_far = 64 * n_cells
        repr_per_token = repr_bytes(model, params, n_far, n_cells) / n_far
        for_tokens = available * 7 / 8 - model.size() - n_seq * n_cells * per_cell
        n_max = min(n_max, (for_tokens + on_disk) / (per_token + repr_per_token))
        if repr_per_token:
            n_max = min(n_max, for_tokens / repr_per_token)  # they are in memory, whatever is on disk
    return min(_N_CTX_MAX, max(int(n_max), n_cells)) // _N_PAD * _N_PAD


@dataclass(frozen=True)
class ContextSizes:
    """Sizes of the contexts of a text that grows.

    Within the training length a context has true positions and more representative keys, so the first one is
    no longer than that. Each following one is for so many more tokens that texts are seldom read again.

    Parameters
    ----------
    n_ctx_train : int
        Training length, tokens.
    limit : int
        The largest size, tokens.
    """

    n_ctx_train: int
    limit: int

    def size(self, n_tokens: int) -> int:
        """Size of the context for `n_tokens` tokens; the limit if they are more."""
        size = self.n_ctx_train
        while size < min(n_tokens, self.limit):
            size = max(2 * size, _N_FIRST)
        return min(size, self.limit)
