"""Small GGUF files with random weights, of architectures that differ in what they keep of a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

import make_gguf

N_VOCAB = 384
N_CTX_TRAIN = 1024
_N_LAYER, _N_EMBD, _N_HEAD, _N_HEAD_KV, _HEAD_DIM, _N_FF = 2, 64, 4, 2, 32, 64

Shapes = dict[str, tuple[int, ...]]


def _ffn() -> Shapes:
    return {
        "ffn_norm.weight": (_N_EMBD,),
        "ffn_gate.weight": (_N_FF, _N_EMBD),
        "ffn_up.weight": (_N_FF, _N_EMBD),
        "ffn_down.weight": (_N_EMBD, _N_FF),
    }


def _attention() -> Shapes:
    return {
        "attn_norm.weight": (_N_EMBD,),
        "attn_q.weight": (_N_HEAD * _HEAD_DIM, _N_EMBD),
        "attn_k.weight": (_N_HEAD_KV * _HEAD_DIM, _N_EMBD),
        "attn_v.weight": (_N_HEAD_KV * _HEAD_DIM, _N_EMBD),
        "attn_output.weight": (_N_EMBD, _N_HEAD * _HEAD_DIM),
        **_ffn(),
    }


def _heads(
    writer: gguf.GGUFWriter, n_head_kv: int = _N_HEAD_KV, k: int = _HEAD_DIM, v: int = _HEAD_DIM
) -> None:
    writer.add_head_count(_N_HEAD)
    writer.add_head_count_kv(n_head_kv)
    writer.add_key_length(k)
    writer.add_value_length(v)
    writer.add_rope_dimension_count(_HEAD_DIM if n_head_kv > 1 else 16)


def _llama(writer: gguf.GGUFWriter) -> Shapes:
    _heads(writer)
    return _attention()


def _gemma3(writer: gguf.GGUFWriter) -> Shapes:
    """Five layers of six attend to a sliding window: both of these."""
    _heads(writer)
    writer.add_sliding_window(128)
    return {
        **_attention(),
        "attn_q_norm.weight": (_HEAD_DIM,),
        "attn_k_norm.weight": (_HEAD_DIM,),
        "post_attention_norm.weight": (_N_EMBD,),
        "post_ffw_norm.weight": (_N_EMBD,),
    }


def _mamba(writer: gguf.GGUFWriter) -> Shapes:
    """Recurrent."""
    n_conv, n_inner, n_state, n_rank = 4, 2 * _N_EMBD, 16, 8
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(n_conv)
    writer.add_ssm_inner_size(n_inner)
    writer.add_ssm_state_size(n_state)
    writer.add_ssm_time_step_rank(n_rank)
    return {
        "attn_norm.weight": (_N_EMBD,),
        "ssm_in.weight": (2 * n_inner, _N_EMBD),
        "ssm_conv1d.weight": (n_inner, n_conv),
        "ssm_conv1d.bias": (n_inner,),
        "ssm_x.weight": (n_rank + 2 * n_state, n_inner),
        "ssm_dt.weight": (n_inner, n_rank),
        "ssm_dt.bias": (n_inner,),
        "ssm_a": (n_inner, n_state),
        "ssm_d": (n_inner,),
        "ssm_out.weight": (_N_EMBD, n_inner),
    }


def _deepseek2(writer: gguf.GGUFWriter) -> Shapes:
    """Latent vectors (MLA): rows of a latent part and a rotary part stand for the keys of all heads."""
    n_latent, n_rope, n_nope, n_value, n_query = 32, 16, 16, 32, 32
    _heads(writer, n_head_kv=1, k=n_latent + n_rope, v=n_latent)
    writer.add_key_length_mla(n_nope + n_rope)
    writer.add_value_length_mla(n_value)
    writer.add_q_lora_rank(n_query)
    writer.add_kv_lora_rank(n_latent)
    writer.add_leading_dense_block_count(_N_LAYER)
    writer.add_expert_feed_forward_length(_N_FF)
    writer.add_expert_shared_count(1)
    return {
        "attn_norm.weight": (_N_EMBD,),
        "attn_q_a_norm.weight": (n_query,),
        "attn_kv_a_norm.weight": (n_latent,),
        "attn_q_a.weight": (n_query, _N_EMBD),
        "attn_q_b.weight": (_N_HEAD * (n_nope + n_rope), n_query),
        "attn_kv_a_mqa.weight": (n_latent + n_rope, _N_EMBD),
        "attn_k_b.weight": (_N_HEAD, n_latent, n_nope),
        "attn_v_b.weight": (_N_HEAD, n_value, n_latent),
        "attn_output.weight": (_N_EMBD, _N_HEAD * n_value),
        **_ffn(),
    }


ARCHITECTURES: dict[str, Callable[[gguf.GGUFWriter], Shapes]] = {
    "llama": _llama,
    "gemma3": _gemma3,
    "mamba": _mamba,
    "deepseek2": _deepseek2,
}


def write(arch: str, path: Path, n_layer: int = _N_LAYER) -> None:
    """Write a model of one of `ARCHITECTURES`."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_vocab_size(N_VOCAB)
    writer.add_context_length(N_CTX_TRAIN)
    writer.add_embedding_length(_N_EMBD)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(_N_FF)
    writer.add_layer_norm_rms_eps(1e-5)
    make_gguf.add_tokenizer(writer, N_VOCAB)

    layer = ARCHITECTURES[arch](writer)
    shapes: Shapes = {"token_embd.weight": (N_VOCAB, _N_EMBD), "output_norm.weight": (_N_EMBD,)}
    shapes.update({f"blk.{i}.{name}": shape for i in range(n_layer) for name, shape in layer.items()})
    _write_tensors(writer, shapes)


def write_bert(path: Path, pooling: gguf.PoolingType) -> None:
    """Write an encoder: what it computes of a token depends on those that follow."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_vocab_size(N_VOCAB)
    writer.add_context_length(N_CTX_TRAIN)
    writer.add_embedding_length(_N_EMBD)
    writer.add_block_count(_N_LAYER)
    writer.add_feed_forward_length(_N_FF)
    writer.add_head_count(_N_HEAD)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_token_type_count(2)
    make_gguf.add_tokenizer(writer, N_VOCAB)

    layer: Shapes = {f"attn_{name}.weight": (_N_EMBD, _N_EMBD) for name in ("q", "k", "v", "output")}
    layer.update({"ffn_up.weight": (_N_FF, _N_EMBD), "ffn_down.weight": (_N_EMBD, _N_FF)})
    norms = ("attn_output_norm", "layer_output_norm")
    layer.update({f"{norm}.{part}": (_N_EMBD,) for norm in norms for part in ("weight", "bias")})
    shapes: Shapes = {
        "token_embd.weight": (N_VOCAB, _N_EMBD),
        "token_types.weight": (2, _N_EMBD),
        "position_embd.weight": (N_CTX_TRAIN, _N_EMBD),
        "token_embd_norm.weight": (_N_EMBD,),
        "token_embd_norm.bias": (_N_EMBD,),
    }
    shapes.update({f"blk.{i}.{name}": shape for i in range(_N_LAYER) for name, shape in layer.items()})
    _write_tensors(writer, shapes)


def write_adapter(
    path: Path,
    shapes: Shapes,
    arch: str = "llama",
    seed: int = 0,
    std: float = 0.02,
    alpha: float | str = 8.0,
    invocation: list[int] | None = None,
) -> None:
    """Write a LoRA adapter of rank 8 for tensors of these names and NumPy shapes."""
    rank = 8
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    if isinstance(alpha, str):  # which no program writes
        writer.add_string("adapter.lora.alpha", alpha)
    else:
        writer.add_float32("adapter.lora.alpha", alpha)
    if invocation:
        writer.add_key_value(
            "adapter.alora.invocation_tokens", invocation, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32
        )
    parts: Shapes = {}
    for name, (n_out, n_in, *experts) in shapes.items():
        parts[f"{name}.lora_a"] = (*experts, rank, n_in)
        parts[f"{name}.lora_b"] = (*experts, n_out, rank)
    _write_tensors(writer, parts, seed, std)


def _write_tensors(writer: gguf.GGUFWriter, shapes: Shapes, seed: int = 0, std: float = 0.1) -> None:
    rng = np.random.default_rng(seed)
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.normal(0, std, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
