#!/usr/bin/env python3
"""Write a GGUF of random weights in the shape of a real model: for speed and memory, not for sense.

    python scripts/make_gguf.py small small.gguf
    python scripts/make_gguf.py llama-3.1-8b llama-3.1-8b-q4_0.gguf
    python scripts/make_gguf.py qwen2.5-7b qwen2.5-7b-f16.gguf --type f16

Nothing is downloaded. The same arguments write the same bytes. The tokenizer knows every byte, so that any
text can be given; most of the vocabulary is unused. Tensors are cut out of one pool of random values, so that
8B parameters take seconds; every projection keeps the variance of its input, so that activations stay finite
in any depth.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

POOL = 1 << 24  # random values to cut tensors out of


@dataclass(frozen=True)
class Shape:
    """Hyperparameters, named as in GGUF."""

    arch: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_ctx_train: int
    freq_base: float
    llama3_rope: bool = False  # frequency factors of Llama 3.1
    qkv_bias: bool = False
    attention: tuple[int, ...] | None = None  # layers that have it, the others are short convolutions (LFM2)


N_CONV = 3  # tokens that a short convolution sees

# from the models' config.json
SHAPES = {
    "small": Shape("llama", 4, 256, 512, 4, 2, 64, 512, 4096, 10000.0),
    "small-deep": Shape("llama", 10, 128, 256, 4, 2, 32, 512, 4096, 10000.0),
    "small-hybrid": Shape("lfm2", 4, 256, 512, 4, 2, 64, 512, 4096, 10000.0, attention=(1, 3)),
    "llama-3.1-8b": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256, 131072, 500000.0, llama3_rope=True),
    "qwen2.5-7b": Shape("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, 131072, 1000000.0, qkv_bias=True),
}


def llama3_factors(head_dim: int, base: float) -> npt.NDArray[np.float32]:
    """Frequency factors [head_dim/2] of Llama 3.1: 8 beyond 8192 tokens (rope_scaling in its config.json)."""
    factor, low, high, n_old = 8.0, 1.0, 4.0, 8192
    wavelength = 2 * math.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((n_old / wavelength - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and NumPy shapes (rows first) of all matrices and vectors."""
    q, kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    yield "token_embd.weight", (shape.n_vocab, shape.n_embd)
    for i in range(shape.n_layer):
        yield f"blk.{i}.attn_norm.weight", (shape.n_embd,)
        if shape.attention is not None and i not in shape.attention:
            yield f"blk.{i}.shortconv.conv.weight", (shape.n_embd, N_CONV)
            yield f"blk.{i}.shortconv.in_proj.weight", (3 * shape.n_embd, shape.n_embd)
            yield f"blk.{i}.shortconv.out_proj.weight", (shape.n_embd, shape.n_embd)
        else:
            for name, n in (("q", q), ("k", kv), ("v", kv)):
                yield f"blk.{i}.attn_{name}.weight", (n, shape.n_embd)
                if shape.qkv_bias:
                    yield f"blk.{i}.attn_{name}.bias", (n,)
            if shape.attention is not None:
                yield f"blk.{i}.attn_q_norm.weight", (shape.head_dim,)
                yield f"blk.{i}.attn_k_norm.weight", (shape.head_dim,)
            yield f"blk.{i}.attn_output.weight", (shape.n_embd, q)
        yield f"blk.{i}.ffn_norm.weight", (shape.n_embd,)
        yield f"blk.{i}.ffn_gate.weight", (shape.n_ff, shape.n_embd)
        yield f"blk.{i}.ffn_up.weight", (shape.n_ff, shape.n_embd)
        yield f"blk.{i}.ffn_down.weight", (shape.n_embd, shape.n_ff)
    yield ("output_norm" if shape.attention is None else "token_embd_norm") + ".weight", (shape.n_embd,)
    yield "output.weight", (shape.n_vocab, shape.n_embd)


class Pool:
    """Random values of unit variance in groups of 32, which are blocks of Q4_0, to cut matrices out of."""

    def __init__(self, dtype: gguf.GGMLQuantizationType, seed: int) -> None:
        self.dtype = dtype
        self.rng = np.random.default_rng(seed)
        if dtype == gguf.GGMLQuantizationType.Q4_0:
            self.groups: npt.NDArray[Any] = self.rng.integers(0, 256, (POOL // 32, 16), dtype=np.uint8)
        else:
            self.groups = self.rng.standard_normal((POOL // 32, 32), dtype=np.float32)

    def matrix(self, rows: int, cols: int, std: float) -> npt.NDArray[np.uint8]:
        """The bytes of a matrix whose values have the standard deviation `std`."""
        start = int(self.rng.integers(0, len(self.groups)))
        index = (start + np.arange(rows * cols // 32)) % len(self.groups)
        if self.dtype == gguf.GGMLQuantizationType.Q4_0:
            # a scale F16, then 32 nibbles: (nibble - 8)*scale has the variance scale^2*(16^2 - 1)/12
            blocks = np.empty((len(index), 18), dtype=np.uint8)
            blocks[:, :2] = np.array([std / math.sqrt(255 / 12)], dtype=np.float16).view(np.uint8)
            blocks[:, 2:] = self.groups[index]
            return blocks.reshape(rows, -1)
        values = (self.groups * np.float32(std)).astype(np.float16)
        groups: npt.NDArray[np.uint8] = values.view(np.uint8)
        return groups[index].reshape(rows, -1)


def add_tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """SentencePiece with a token per byte, printable ASCII, and unused tokens."""
    kind = gguf.TokenType
    tokens = [(b"<unk>", kind.UNKNOWN), (b"<s>", kind.CONTROL), (b"</s>", kind.CONTROL)]
    tokens += [(f"<0x{i:02X}>".encode(), kind.BYTE) for i in range(256)]
    tokens += [("▁".encode() if i == 32 else bytes([i]), kind.NORMAL) for i in range(32, 127)]
    tokens += [(f"<unused{i}>".encode(), kind.UNUSED) for i in range(n_vocab - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([int(t) for _, t in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write(shape: Shape, name: str, path: Path, dtype: gguf.GGMLQuantizationType, seed: int) -> None:
    """Write the whole file; tensors go to it one by one."""
    writer = gguf.GGUFWriter(path, shape.arch)
    writer.add_name(f"{name}, random weights")
    writer.add_vocab_size(shape.n_vocab)
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    if shape.attention is None:
        writer.add_head_count_kv(shape.n_head_kv)
    else:
        heads = [shape.n_head_kv if i in shape.attention else 0 for i in range(shape.n_layer)]
        writer.add_head_count_kv(heads)
        writer.add_shortconv_l_cache(N_CONV)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.freq_base)
    writer.add_layer_norm_rms_eps(1e-5)
    add_tokenizer(writer, shape.n_vocab)

    block, size = gguf.GGML_QUANT_SIZES[dtype]
    f32 = np.dtype(np.float32)
    todo = list(tensors(shape))
    if shape.llama3_rope:
        todo.append(("rope_freqs.weight", (shape.head_dim // 2,)))
    for tensor, dims in todo:
        if len(dims) == 1 or tensor.endswith("conv.weight"):
            writer.add_tensor_info(tensor, dims, f32, 4 * math.prod(dims))
        else:
            n_bytes = dims[0] * dims[1] // block * size
            row = dims[1] // block * size
            writer.add_tensor_info(tensor, (dims[0], row), np.dtype(np.uint8), n_bytes, raw_dtype=dtype)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()

    pool = Pool(dtype, seed)
    for tensor, dims in todo:
        if tensor == "rope_freqs.weight":
            writer.write_tensor_data(llama3_factors(shape.head_dim, shape.freq_base))
        elif tensor.endswith("bias"):
            writer.write_tensor_data(np.zeros(dims, np.float32))
        elif len(dims) == 1:
            writer.write_tensor_data(np.ones(dims, np.float32))
        elif tensor.endswith("conv.weight"):
            writer.write_tensor_data(pool.rng.standard_normal(dims, np.float32) / math.sqrt(dims[1]))
        else:
            # token vectors are normalised first; a matrix adds up dims[1] products
            scale = 1.0 if tensor.startswith("token_embd") else 1 / math.sqrt(dims[1])
            writer.write_tensor_data(pool.matrix(dims[0], dims[1], scale))
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("path", type=Path)
    parser.add_argument(
        "--type", choices=("q4_0", "f16"), default="q4_0", help="of the matrices (default: q4_0)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.path.parent.is_dir():
        sys.exit(f"The folder {args.path.parent} does not exist.")
    dtype = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "f16": gguf.GGMLQuantizationType.F16}[args.type]
    write(SHAPES[args.shape], args.shape, args.path, dtype, args.seed)
    print(f"{args.path}: {args.path.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
