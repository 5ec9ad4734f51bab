"""What is seen in the logits of every token of a text: perplexity, and the divergence from full attention."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..llama import Llama, ProgressCallback

BUCKET = 2048  # tokens of a bucket of perplexity
STEP = 256  # tokens whose logits are in memory at a time

Logits = npt.NDArray[np.float32]


def perplexity(
    llm: Llama, tokens: list[int], progress: ProgressCallback
) -> tuple[list[tuple[int, int, float]], float]:
    """Mean negative log likelihood of the tokens, in nats per token.

    Returns
    -------
    buckets : list of tuple
        Begin, end and mean of every `BUCKET` positions.
    last : float
        Mean of the last `BUCKET` tokens.
    """
    llm.reset()
    losses = np.empty(len(tokens) - 1)
    for i in range(0, len(tokens) - 1, STEP):
        batch = tokens[i : i + STEP]
        following = tokens[i + 1 : i + 1 + len(batch)]
        logits = _log_softmax(llm.eval(batch, all_logits=True)[: len(following)])
        losses[i : i + len(following)] = -logits[np.arange(len(following)), following]
        progress(i + len(batch), len(tokens))
    buckets = [
        (begin, min(begin + BUCKET, len(tokens)), float(losses[begin : begin + BUCKET].mean()))
        for begin in range(0, len(losses), BUCKET)
    ]
    return buckets, float(losses[-BUCKET:].mean())


def log_probs(llm: Llama, tokens: list[int], progress: ProgressCallback) -> Logits:
    """Log probabilities of the next tokens, over the last `BUCKET` tokens.

    They are in a temporary file: a row can have 262,144 values.

    Returns
    -------
    numpy.ndarray
        ``[min(BUCKET, n_tokens), n_vocab]``.
    """
    with tempfile.TemporaryFile() as file:
        shape = min(BUCKET, len(tokens)), llm.n_vocab()
        out = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)  # keeps the file open
    for i, row in _rows(llm, tokens, progress):
        out[i] = row
    return out


def divergence(llm: Llama, exact: Logits, tokens: list[int], progress: ProgressCallback) -> dict[str, Any]:
    """How far the next tokens of `llm` are from `exact`, which `log_probs()` has of another.

    Returns
    -------
    dict
        ``kl_mean, kl_median, kl_99``: of the Kullback-Leibler divergence KL(exact || llm), in nats per token,
        mean, median and the 99th percentile; ``same_token``: share of positions with the same most likely
        token.
    """
    values: list[float] = []
    same: list[bool] = []
    for i, q in _rows(llm, tokens, progress):
        p = exact[i]
        values.append(float((np.exp(p) * (p - q)).sum()))
        same.append(bool(p.argmax() == q.argmax()))
    return {
        "kl_mean": float(np.mean(values)),
        "kl_median": float(np.median(values)),
        "kl_99": float(np.percentile(values, 99)),
        "same_token": float(np.mean(same)),
    }


def _rows(llm: Llama, tokens: list[int], progress: ProgressCallback) -> Iterator[tuple[int, Logits]]:
    llm.reset()
    first = max(0, len(tokens) - BUCKET)
    for i in range(0, len(tokens), STEP):
        batch = tokens[i : i + STEP]
        logits = llm.eval(batch, all_logits=True)
        for row in range(max(0, first - i), len(batch)):
            yield i + row - first, _log_softmax(logits[row : row + 1])[0]
        progress(i + len(batch), len(tokens))


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    shifted: npt.NDArray[np.float32] = logits - logits.max(axis=1, keepdims=True)
    norm: npt.NDArray[np.float64] = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    return shifted - np.log(norm).astype(np.float32)


def mean_perplexity(buckets: Sequence[tuple[int, int, float]]) -> float:
    """Perplexity over all buckets."""
    n_total = sum(end - begin for begin, end, _ in buckets)
    return math.exp(sum((end - begin) * loss for begin, end, loss in buckets) / n_total)
