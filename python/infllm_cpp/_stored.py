"""The tokens that are stored in a context, and how much of them a prompt can begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class _Text:
    """Tokens given at once, from `begin` to `end`, and where the ubatches end that were computed."""

    begin: int
    end: int
    ends: list[int] = field(default_factory=list)


class StoredTokens:
    """Tokens, and the texts that they were read as; what was added token by token is in no text.

    The same prompt is to give the same logits, bit for bit, whatever was stored before. So as much is kept of
    what is stored as was computed just as it would be for the prompt: whole ubatches that end at the same
    positions. What was generated is kept as it is.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._texts: list[_Text] = []

    @classmethod
    def of(cls, tokens: list[int], texts: list[list[int]]) -> StoredTokens:
        """Tokens with the texts that `texts` returned."""
        res = cls()
        res.tokens = tokens
        res._texts = [_Text(begin, end, ends) for begin, end, *ends in texts]
        return res

    def texts(self) -> list[list[int]]:
        """Where each text begins and ends, and where its ubatches do."""
        return [[text.begin, text.end, *text.ends] for text in self._texts]

    def begin_text(self, begin: int, end: int) -> None:
        """What is appended from now on ends a text, which begins at `begin`, with tokens that are stored."""
        self._texts = [text for text in self._texts if text.begin <= begin]
        if self._texts and self._texts[-1].begin == begin:
            self._texts[-1].end = end
        else:
            self._texts.append(_Text(begin, end))

    def append(self, tokens: Sequence[int], ends: Sequence[int] = ()) -> None:
        """Add tokens; of a text, whose ubatches end at `ends`, or a generated one."""
        self.tokens.extend(tokens)
        if ends:
            self._texts[-1].ends.extend(ends)

    def truncate(self, n_tokens: int) -> None:
        """Keep the first `n_tokens`."""
        del self.tokens[n_tokens:]
        self._texts = [text for text in self._texts if text.begin < n_tokens]
        for text in self._texts:
            text.ends = [end for end in text.ends if end <= n_tokens]

    def reusable(
        self, prompt: Sequence[int], n_end: int, ubatch_ends: Callable[[int, int], list[int]]
    ) -> tuple[int, int]:
        """How much of what is stored `prompt` can begin with.

        Parameters
        ----------
        prompt : sequence of int
        n_end : int
            Tokens at the end of a text that are a ubatch of their own.
        ubatch_ends : callable
            Where the ubatches end of a text from one position to another.

        Returns
        -------
        n_kept : int
            Tokens to keep.
        begin : int
            Where the text begins of which the rest of the prompt is the end.
        """
        n = len(prompt)
        limit = min(n_common(self.tokens, prompt), n - max(n_end, 1))
        text = next((text for text in reversed(self._texts) if text.begin < limit), None)
        if text is None:
            return 0, 0
        if text.ends and text.ends[-1] == text.end < limit:
            return limit, limit  # generated tokens follow the text

        n_kept = text.begin
        for stored, end in zip(text.ends, ubatch_ends(text.begin, n), strict=False):
            if stored != end or end > limit:
                break
            n_kept = end
        return n_kept, text.begin


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
