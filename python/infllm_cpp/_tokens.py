"""Tokens as users give them: lists, arrays, whatever else has integers in it."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterable

import numpy as np


def as_tokens(tokens: Iterable[int], n_vocab: int) -> list[int]:
    """A list of `tokens`.

    Raises
    ------
    TypeError
        When they are not integers.
    ValueError
        When one is not in a vocabulary of `n_vocab`.
    """
    if isinstance(tokens, (str, bytes, bytearray)):
        raise TypeError(f"{reprlib.repr(tokens)} is not a sequence of tokens: use tokenize() for a text")
    if isinstance(tokens, np.ndarray) and tokens.ndim != 1:
        raise TypeError(f"tokens have shape {tokens.shape}: they are a sequence, with one dimension")
    try:
        # of Python's own integers, which the quick check below knows
        result = tokens.tolist() if isinstance(tokens, np.ndarray) else list(tokens)
    except TypeError:
        raise TypeError(f"{reprlib.repr(tokens)} is not a sequence of tokens") from None

    if not all(type(token) is int for token in result):
        result = [_as_token(i, token) for i, token in enumerate(result)]
    if result and not 0 <= min(result) <= max(result) < n_vocab:
        wrong = next(token for token in result if not 0 <= token < n_vocab)
        raise ValueError(f"token {wrong} is out of range: the model has tokens 0 to {n_vocab - 1}")
    return result


def _as_token(i: int, token: object) -> int:
    try:
        if not isinstance(token, (bool, np.bool_)):
            return operator.index(token)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise TypeError(f"tokens[{i}] = {reprlib.repr(token)} is not an integer")
