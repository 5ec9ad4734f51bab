"""What a task is made of: a long text, questions about it, and the right answers."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice

from ..llama import Llama
from .prose import sentences, words
from .scores import Score, begins

N_ANSWER = 32  # most tokens of an answer
N_ANSWERS = 64  # of one that is a list


@dataclass(frozen=True)
class Question:
    """Tokens to append to the text, and what the answer is compared with.

    Attributes
    ----------
    tokens : list of int
    answers : tuple of str
        One expected answer, or several.
    score : callable
        ``score(answer, answers)``, from 0 (wrong) to 1 (right).
    n_answer : int or None
        Most tokens of the answer; None: four more than are expected.
    """

    tokens: list[int]
    answers: tuple[str, ...]
    score: Score = begins
    n_answer: int | None = None


@dataclass(frozen=True)
class Sample:
    """A text of at most the asked length, and what is asked about it; `n_cut` tokens were too many."""

    tokens: list[int]
    questions: list[Question]
    n_cut: int = 0


class Haystack:
    """A text that is tokenised once, piece by piece, and cut to any length.

    Parameters
    ----------
    llm : Llama
        Whose tokens they are, and whose chat template.
    text : str
    split : callable
        Pieces of a text, which follow each other without a gap; default: `sentences`.
    """

    def __init__(self, llm: Llama, text: str, split: Callable[[str], list[str]] = sentences) -> None:
        self.llm = llm
        self.text = text
        self.pieces = split(text)
        self._tokens: dict[int, list[int]] = {}
        self.begin = llm.tokenize("", add_bos=True)

    def encode(self, text: str) -> list[int]:
        """Tokens of a piece of text that does not begin the prompt."""
        return self.llm.tokenize(text, add_bos=False)

    def piece(self, i: int) -> list[int]:
        """Tokens of a piece; the first follows the last."""
        index = i % len(self.pieces)
        if index not in self._tokens:
            self._tokens[index] = self.encode(self.pieces[index])
        return self._tokens[index]

    def cut(self, n_tokens: int, first: int = 0) -> list[list[int]]:
        """`n_tokens` tokens in pieces, from number `first` on, over and over; the last may be cut."""
        out, n_left = [], n_tokens
        for i in range(first, first + n_tokens):
            tokens = self.piece(i)
            out.append(tokens[:n_left])
            n_left -= len(tokens)
            if n_left <= 0:
                break
        return out

    def words(self, n: int) -> list[str]:
        """The first `n` words, each with the white space before it, over and over."""
        return list(islice(cycle(self._words), n))

    @cached_property
    def _words(self) -> list[str]:
        return words(self.text)

    def hide(self, n_tokens: int, needles: Sequence[tuple[float, str]]) -> list[int]:
        """At most `n_tokens` tokens of the text, with sentences hidden at depths from 0 (begin) to 1."""
        hidden = [(depth, self.encode(" " + text)) for depth, text in needles]
        n_prose = n_tokens - len(self.begin) - sum(len(tokens) for _, tokens in hidden)
        if n_prose < 0:
            raise ValueError(f"n_tokens = {n_tokens} is too small for the {len(needles)} facts to hide")
        prose = self.cut(n_prose)
        for depth, tokens in sorted(hidden, key=lambda item: -item[0]):
            prose.insert(round(depth * len(prose)), tokens)
        return self.begin + [token for tokens in prose for token in tokens]


def most_that_fit(make: Callable[[int], list[int]], n_tokens: int) -> int:
    """The largest number of words with which `make` has at most `n_tokens` tokens.

    Raises
    ------
    ValueError
        When none fits.
    """
    n = bisect.bisect_right(range(n_tokens + 1), n_tokens, key=lambda n: len(make(n))) - 1
    if n < 0:
        raise ValueError(
            f"n_tokens = {n_tokens} is too small: without the text there are {len(make(0))} tokens already"
        )
    return n
