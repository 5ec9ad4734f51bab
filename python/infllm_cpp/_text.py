"""Text out of a stream of token pieces: characters split over tokens, stop strings that span tokens."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turn the bytes of tokens into text that is safe to show.

    Bytes of an incomplete character and text that may become a stop string are held back. Bytes that are
    not UTF-8 become U+FFFD.

    Parameters
    ----------
    stop : sequence of str
        Strings that end the text; they are not part of it.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.stopped = False
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, piece: bytes) -> str:
        """Add the bytes of a token; return the text that is certain now. Sets `stopped` at a stop string."""
        return self._release(self._decoder.decode(piece), final=False)

    def finish(self) -> str:
        """Return what was held back: there are no more tokens."""
        return self._release(self._decoder.decode(b"", final=True), final=True)

    def _release(self, text: str, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + text

        ends = [i for i in (text.find(s) for s in self._stop) if i >= 0]
        if ends:
            self.stopped = True
            return text[: min(ends)]

        n_held = 0 if final else max((_n_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def _n_overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
