"""The passkey task of InfLLM (arXiv 2402.04617): a number hidden in a long text of no meaning."""

from __future__ import annotations

import random
from collections.abc import Callable

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.\n"
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key. "
# a small model goes on with prose after the bare "What is the pass key? The pass key is", at any length
QUESTION = "What was the pass key again? The pass key is"


def make_passkey_prompt(
    tokenize: Callable[[str], list[int]], n_tokens: int, depth: float = 0.5, seed: int = 0
) -> tuple[list[int], str]:
    """Make a passkey prompt.

    Parameters
    ----------
    tokenize : callable
        Tokens of a text, for example `Llama.tokenize`.
    n_tokens : int
        Length of the prompt: the most filler that keeps it within this many tokens.
    depth : float
        Where the pass key is: 0 begins the filler, 1 ends it.
    seed : int
        Decides the pass key.

    Returns
    -------
    tokens : list of int
        At most `n_tokens`.
    key : str
        Five digits: the right continuation is a space and these.

    Raises
    ------
    ValueError
        When `depth` is not within 0 to 1, or `n_tokens` has no room for the question.
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth = {depth} is out of range: use a value from 0 to 1")
    key = str(random.Random(seed).randint(10000, 99999))

    def make(n_filler: int) -> list[int]:
        n_before = round(depth * n_filler)
        return tokenize(
            TASK + FILLER * n_before + NEEDLE.format(key=key) + FILLER * (n_filler - n_before) + QUESTION
        )

    n_bare = len(make(0))
    if n_bare > n_tokens:
        raise ValueError(
            f"n_tokens = {n_tokens} is too small: the task and the question alone have {n_bare} tokens"
        )

    # a tokenizer may count the filler differently where texts meet: estimate, then correct
    n_per_filler = (len(make(100)) - n_bare) / 100
    n_filler = int((n_tokens - n_bare) / n_per_filler)
    while len(tokens := make(n_filler)) > n_tokens:
        n_filler -= 1
    return tokens, key


def is_right(answer: str, key: str) -> bool:
    """True if an answer begins with the pass key, or what else was asked for, in any case of letters."""
    return answer.strip().lower().startswith(key.lower())
