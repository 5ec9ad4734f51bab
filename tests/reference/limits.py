"""How close to full attention any selection of blocks could come: selections that know the attention.

    python tests/reference/limits.py -m SmolLM2-135M-Instruct.Q4_1.gguf
    python tests/reference/limits.py -m gemma-3-270m-q4_k_m.gguf --n-cells 512

Half of the cells are the local window, the others those blocks of a layer with the largest sums of attention
probabilities, over the tokens that share a selection and all heads, or those of a KV head. By means the
probabilities are not the true ones: the mean key of every four tokens, with RoPE, stands for the four.
Prints the KL divergence to full attention over the last half of the text, as `infllm eval divergence` does.
All in NumPy and float32, for models of the Llama and Gemma 3 architectures.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from dense import Dense
from infllm_reference import Floats, best, softmax

from infllm_cpp import Llama
from infllm_cpp.evaluation.haystack import Haystack
from infllm_cpp.evaluation.prose import load_prose

CHUNK = 64  # tokens that are computed at once
N_INIT = 64
N_MEAN = 4


@dataclass(frozen=True)
class Choice:
    """Which blocks are attended, besides the init tokens and the local window.

    Attributes
    ----------
    shared : int
        Tokens that share a selection, at most `CHUNK`; 0: there are no blocks, all cells are the window.
    block_size : int
        Tokens of a block.
    by_head : bool
        Whether every KV head has a selection of its own.
    means : bool
        Whether mean keys stand for the keys.
    """

    shared: int
    block_size: int = 64
    by_head: bool = False
    means: bool = False


CHOICES = {
    "window alone": Choice(0),
    "64 tokens share blocks of 64": Choice(64),
    "64 tokens share blocks of 16": Choice(64, 16),
    "every token its own blocks of 64": Choice(1),
    "every token its own blocks of 16": Choice(1, 16),
    "every token and head its own blocks of 64": Choice(1, by_head=True),
    "64 tokens share blocks of 64, by means": Choice(64, means=True),
    "every token its own blocks of 64, by means": Choice(1, means=True),
}


def attended(choice: Choice, n_cells: int, probs: Floats, p0: int) -> npt.NDArray[np.bool_]:
    """What the tokens of a chunk attend to, ``[G, CHUNK, p1]``, but for causality.

    probs : ``[G, CHUNK, p1]``, summed over the query heads of a KV head.
    """
    n_head_kv, n_token = probs.shape[:2]
    size = choice.block_size
    n_local = (n_cells - N_INIT) // (2 if choice.shared else 1)
    n_block = max(0, (p0 - n_local - N_INIT) // size)
    begin = N_INIT + n_block * size  # of the window
    out = np.zeros(probs.shape, bool)
    out[..., :N_INIT] = out[..., begin:] = True
    n_slot = (n_cells - N_INIT - n_local) // size
    if choice.shared and n_block:
        mass = probs[..., N_INIT:begin].reshape(n_head_kv, n_token, n_block, size).sum(axis=-1)
        if not choice.by_head:
            mass = mass.sum(axis=0, keepdims=True)
        mass = mass.reshape(len(mass), n_token // choice.shared, choice.shared, n_block).sum(axis=2)
        chosen = np.zeros(mass.shape, bool)
        np.put_along_axis(chosen, best(mass, n_slot), True, axis=-1)
        out[..., N_INIT:begin] |= chosen.repeat(size, axis=-1).repeat(choice.shared, axis=1)
    return out


def limited(q: Floats, k: Floats, v: Floats, choice: Choice | None, n_cells: int, n_swa: int = 0) -> Floats:
    """The attention of a layer to what a choice leaves of its keys, ``[G, T, R, D]``; None: to all.

    n_swa : a sliding window, which has no choice; 0 for none.
    """
    n_head_kv, n_token, _, dim = q.shape
    pos = np.arange(n_token)
    out = np.empty_like(q)
    means = k.reshape(n_head_kv, -1, N_MEAN, dim).mean(axis=2)
    for p0 in range(0, n_token, CHUNK):
        p1 = p0 + CHUNK
        logits = np.einsum("gtrd,gnd->gtrn", q[:, p0:p1], k[:, :p1], optimize=True)
        distance = pos[p0:p1, None] - pos[:p1]
        hidden = (distance < 0) | (distance >= (n_swa or n_token))
        logits[np.broadcast_to(hidden[:, None], logits.shape)] = -np.inf
        if choice is not None and p1 > n_cells:
            known = logits.copy()
            if choice.means:
                of_means = np.einsum("gtrd,gnd->gtrn", q[:, p0:p1], means[:, : p0 // N_MEAN], optimize=True)
                known[..., :p0] = of_means.repeat(N_MEAN, axis=-1)
            keep = attended(choice, n_cells, softmax(known).sum(axis=2), p0)
            logits[np.broadcast_to(~keep[:, :, None], logits.shape)] = -np.inf
        out[:, p0:p1] = np.einsum("gtrn,gnd->gtrd", softmax(logits), v[:, :p1], optimize=True)
    return out


def last_half(model: Dense, tokens: list[int], choice: Choice | None, n_cells: int) -> Floats:
    """What the model makes of the last half of a text, ``[T/2, n_embd]``."""

    def attend(q: Floats, k: Floats, v: Floats, n_swa: int) -> Floats:
        return limited(q, k, v, None if n_swa else choice, n_cells, n_swa)

    return model.hidden(tokens, attend)[len(tokens) // 2 :]


def divergence(model: Dense, exact: Floats, found: Floats) -> tuple[Floats, float]:
    """KL of every token, ``[n]`` nats, and the share with the same first token."""
    kl, same = [], 0
    for i in range(0, len(exact), CHUNK):
        p, q = model.log_probs(exact[i : i + CHUNK]), model.log_probs(found[i : i + CHUNK])
        kl.append((np.exp(p) * (p - q)).sum(axis=1))
        same += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
    return np.concatenate(kl), same / len(exact)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("--length", type=int, default=4096, help="tokens, a multiple of 128")
    parser.add_argument("--n-cells", type=int, default=1024, help="init tokens, window and blocks")
    args = parser.parse_args()
    if args.length % (2 * CHUNK):
        parser.error(f"length = {args.length} is not a multiple of {2 * CHUNK}")

    with Llama(args.model, n_ctx=512, infllm=None) as llm:
        haystack = Haystack(llm, load_prose())
        text = [token for sentence in haystack.cut(args.length) for token in sentence]
        tokens = haystack.begin + text[-(args.length - len(haystack.begin)) :]
    model = Dense(args.model)
    exact = last_half(model, tokens, None, args.n_cells)
    print(f"{'':<44} {'mean':>8} {'median':>8} {'99 %':>8} {'same first token':>18}")
    for name, choice in CHOICES.items():
        kl, same = divergence(model, exact, last_half(model, tokens, choice, args.n_cells))
        values = f"{kl.mean():8.4f} {np.median(kl):8.4f} {np.percentile(kl, 99):8.3f}"
        print(f"{name:<44} {values} {100 * same:16.1f} %", flush=True)


if __name__ == "__main__":
    main()
