"""Models of next to no weights, for what depends on the vocabulary alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

N_EMBD = 32


def write_vocabulary(path: Path, kind: str, special: Mapping[str, gguf.TokenType]) -> None:
    """Write a GGUF with every byte, some words and the special tokens; BOS is ``<s>``.

    Parameters
    ----------
    path : Path
    kind : {"llama", "gpt2"}
        SentencePiece, which puts a space before text that follows a special token, or BPE.
    special : mapping of str to TokenType
        Further tokens.
    """
    normal = gguf.TokenType.NORMAL
    tokens = {"<unk>": gguf.TokenType.UNKNOWN, "<s>": gguf.TokenType.CONTROL, "</s>": gguf.TokenType.CONTROL}
    merges = ["t h", "th e", "i n", "in g", "▁ the", "▁ ▁", "< |", "| >", "< /", "s >"]
    if kind == "llama":
        tokens |= {f"<0x{i:02X}>": gguf.TokenType.BYTE for i in range(256)}
        tokens |= {"▁" if i == 32 else chr(i): normal for i in range(32, 127)}
    else:
        merges = [merge.replace("▁", "Ġ") for merge in merges]
        tokens |= {char: normal for char in gpt2_bytes()}
    tokens |= {merge.replace(" ", ""): normal for merge in merges}
    tokens |= special

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(len(tokens))
    writer.add_context_length(4096)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(1)
    writer.add_feed_forward_length(N_EMBD)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(kind)
    if kind == "gpt2":
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(merges)
    writer.add_token_list(list(tokens))
    writer.add_token_scores([-float(i) if kind == normal else 0.0 for i, kind in enumerate(tokens.values())])
    writer.add_token_types([int(kind) for kind in tokens.values()])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)

    matrices = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), N_EMBD), np.float16))
    writer.add_tensor("output_norm.weight", np.ones(N_EMBD, np.float32))
    for name in matrices:
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((N_EMBD, N_EMBD), np.float16))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(N_EMBD, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gpt2_bytes() -> list[str]:
    """The character that stands for each byte in a byte-level BPE vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [i for i in range(256) if i not in printable]
    return [chr(i) for i in printable] + [chr(256 + n) for n in range(len(other))]
