"""States of what cannot go back by itself, so that the last turn of a chat can be read again, and it alone.

Recurrent layers have the state of the last token, and a sliding window keeps little more than itself:
llama.cpp cannot remove a tail of such a sequence. llama-server keeps checkpoints of these parts alone
(``llama_state_seq_get_data_ext()`` with ``LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY``), and so do we; layers that
attend to all tokens go back by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import _core

MAX_COUNT = 8
MAX_BYTES = 512 << 20  # of all together
PASSING_TOKENS = 8192  # from one to the next within a text


class Checkpoints:
    """The latest ones, each at a number of tokens; none are made of models that do not need them."""

    def __init__(self) -> None:
        self._states: dict[int, bytes] = {}  # by the number of tokens, ascending
        self._passing: set[int] = set()  # those within a text, of which the last one is enough

    @classmethod
    def of(cls, states: dict[int, bytes]) -> Checkpoints:
        """Those that `states` returned."""
        res = cls()
        res._states = dict(states)
        return res

    def states(self) -> dict[int, bytes]:
        """The states by their numbers of tokens, ascending."""
        return dict(self._states)

    def positions(self) -> Sequence[int]:
        """Where there are checkpoints, ascending."""
        return list(self._states)

    def add(self, ctx: _core.Context, n_tokens: int, passing: bool = False) -> None:
        """Keep the state of `ctx`, which has `n_tokens` tokens; the oldest ones go when there are too many.

        `passing`: within a text, so that what was read is not lost when it is interrupted.
        """
        if not ctx.needs_checkpoints() or n_tokens == 0:
            return
        if passing and n_tokens - max(self._states, default=0) < PASSING_TOKENS:
            return
        for position in self._passing:
            self._states.pop(position, None)
        self._passing = {n_tokens} if passing else set()
        self.forget_after(n_tokens)
        self._states[n_tokens] = ctx.checkpoint()
        while len(self._states) > MAX_COUNT or sum(map(len, self._states.values())) > MAX_BYTES:
            del self._states[next(iter(self._states))]

    def restore(self, ctx: _core.Context, n_tokens: int) -> int:
        """Take `ctx` back to the latest checkpoint of at most `n_tokens` tokens.

        Returns
        -------
        int
            Tokens that `ctx` has now; 0: there was no checkpoint, or it did not fit and all was forgotten.
        """
        position = max((p for p in self._states if p <= n_tokens), default=0)
        return position if position and ctx.restore(self._states[position], position) else 0

    def forget_after(self, n_tokens: int) -> None:
        """Forget those with more tokens: the text will be another one there."""
        for position in self.positions():
            if position > n_tokens:
                del self._states[position]
