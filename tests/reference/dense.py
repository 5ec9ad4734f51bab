"""Full attention in NumPy, and any other that is handed in: models of the Llama and Gemma 3 architectures.

What `infllm_reference` computes chunk by chunk with a memory is computed here layer by layer over a whole
text, so that an attention may look at all queries and keys of a layer.

Shapes: ``T`` tokens, ``H`` query heads, ``G`` KV heads, ``R = H/G``, ``D`` values of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from infllm_reference import Floats

Attention = Callable[[Floats, Floats, Floats, int], Floats]
"""q ``[G, T, R, D]`` with RoPE and scaled, k and v ``[G, T, D]``; a sliding window or 0; as q."""


def gelu(x: Floats) -> Floats:
    """As ggml has it: the approximation by tanh."""
    res: Floats = 0.5 * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * x * (1 + 0.044715 * x * x)))
    return res


def silu(x: Floats) -> Floats:
    res: Floats = x / (1 + np.exp(-x))
    return res


@dataclass(frozen=True)
class Rope:
    freqs: Floats
    """Angle of a rotation by one position, ``[D/2]``."""
    neox: bool
    """Whether dimensions ``i`` and ``i + D/2`` are a pair, instead of ``2i`` and ``2i + 1``."""

    def __call__(self, x: Floats) -> Floats:
        """Rotate ``[T, heads, D]``, token ``t`` by position ``t``."""
        angle = np.multiply.outer(np.arange(len(x), dtype=np.float64), self.freqs)[:, None]
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        half = x.shape[-1] // 2
        first, second = (
            (slice(half), slice(half, None)) if self.neox else (slice(0, None, 2), slice(1, None, 2))
        )
        res = np.empty_like(x)
        res[..., first] = x[..., first] * cos - x[..., second] * sin
        res[..., second] = x[..., first] * sin + x[..., second] * cos
        return res


class Dense:
    """A GGUF model, dequantised to float32 (src/models/llama.cpp and gemma3.cpp of llama.cpp).

    Raises
    ------
    ValueError
        When the architecture is another one.

    Attributes
    ----------
    n_swa : list of int
        Tokens of the sliding window of each layer, 0 where it attends to all.
    """

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        meta = {name: f.contents() for name, f in reader.fields.items() if not name.startswith("tokenizer")}
        self.arch = meta["general.architecture"]
        if self.arch not in ("llama", "gemma3"):
            raise ValueError(f"architecture {self.arch!r} is not supported: use 'llama' or 'gemma3'")
        meta = {name.removeprefix(f"{self.arch}."): value for name, value in meta.items()}
        if meta.get("rope.scaling.type", "none") != "none":
            raise ValueError("RoPE scaling is not supported")

        self.weights = {
            t.name.removesuffix(".weight"): np.asarray(
                gguf.quants.dequantize(t.data, t.tensor_type), np.float32
            )
            for t in reader.tensors
        }
        if "rope_freqs" in self.weights:
            raise ValueError("RoPE factors are not supported")
        gemma = self.arch == "gemma3"
        n_layer, n_head, n_embd = meta["block_count"], meta["attention.head_count"], meta["embedding_length"]
        self.n_head_kv = meta["attention.head_count_kv"]
        self.n_embd_head = meta.get("attention.key_length", n_embd // n_head)
        self.eps = meta["attention.layer_norm_rms_epsilon"]
        self.scale = np.float32(np.sqrt(n_embd) if gemma else 1)
        n_swa = meta.get("attention.sliding_window", 0) if gemma else 0
        self.n_swa = [n_swa if il % 6 < 5 else 0 for il in range(n_layer)]

        def rope(base: float) -> Rope:
            dims = np.arange(0, self.n_embd_head, 2)
            return Rope((base ** (-dims / self.n_embd_head)).astype(np.float32), neox=gemma)

        every = rope(meta.get("rope.freq_base", 10000.0))
        local = rope(meta.get("rope.freq_base_swa", 10000.0))
        self.ropes = [local if n else every for n in self.n_swa]

    def norm(self, x: Floats, name: str) -> Floats:
        """RMS norm; the identity where the model has none of that name."""
        if name not in self.weights:
            return x
        res: Floats = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * self.weights[name]
        return res

    def hidden(self, tokens: list[int], attend: Attention) -> Floats:
        """What the last layer makes of a text, normed, ``[T, n_embd]``."""
        x = self.weights["token_embd"][tokens] * self.scale
        act = gelu if self.arch == "gemma3" else silu
        for il, (n_swa, rope) in enumerate(zip(self.n_swa, self.ropes, strict=True)):
            name = f"blk.{il}."

            def linear(h: Floats, what: str, name: str = name) -> Floats:
                res: Floats = h @ self.weights[name + what].T
                return res

            h = self.norm(x, name + "attn_norm")
            q, k, v = (
                linear(h, what).reshape(len(x), -1, self.n_embd_head)
                for what in ("attn_q", "attn_k", "attn_v")
            )
            q = rope(self.norm(q, name + "attn_q_norm")) / np.sqrt(np.float32(self.n_embd_head))
            k = rope(self.norm(k, name + "attn_k_norm"))
            q = q.reshape(len(x), self.n_head_kv, -1, self.n_embd_head).swapaxes(0, 1)
            out = attend(q, k.swapaxes(0, 1), v.swapaxes(0, 1), n_swa).swapaxes(0, 1).reshape(len(x), -1)
            x = x + self.norm(linear(out, "attn_output"), name + "post_attention_norm")
            h = self.norm(x, name + "ffn_norm")
            out = linear(act(linear(h, "ffn_gate")) * linear(h, "ffn_up"), "ffn_down")
            x = x + self.norm(out, name + "post_ffw_norm")
        return self.norm(x, "output_norm")

    def log_probs(self, hidden: Floats) -> Floats:
        """Of the tokens that follow, ``[n, n_vocab]``."""
        logits: Floats = hidden @ self.weights["output" if "output" in self.weights else "token_embd"].T
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits
