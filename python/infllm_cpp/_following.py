"""A context that follows its text: of the training length while that is enough, else as long as needed."""

from __future__ import annotations

from collections.abc import Callable

from . import _core
from ._sizes import ContextSizes


class FollowingContext:
    """Makes the contexts of a text that grows.

    Parameters
    ----------
    sizes : ContextSizes
    make : callable
        A context of a size.
    """

    def __init__(self, sizes: ContextSizes, make: Callable[[int], _core.Context]) -> None:
        self._sizes = sizes
        self._make = make
        self.size = sizes.size(0)

    @property
    def n_ctx_train(self) -> int:
        """Training length, tokens: that of the first context."""
        return self._sizes.n_ctx_train

    def kind(self, n_tokens: int, n_ctx: int = 0) -> int:
        """Size of the context for `n_tokens` tokens, or for such that a context of `n_ctx` had before."""
        return self._sizes.size(max(n_tokens, min(n_ctx, self.n_ctx_train + 1)))

    def again(self) -> _core.Context:
        """One as there is now."""
        return self._make(self.size)

    def first(self) -> _core.Context:
        """The context to begin with."""
        return self._make(self.size)

    def fork(self) -> FollowingContext:
        """Another one, for a text that is as long now."""
        res = FollowingContext(self._sizes, self._make)
        res.size = self.size
        return res

    def resize(self, n_tokens: int, shrink: bool) -> _core.Context | None:
        """Another context, for `n_tokens` tokens; ``None`` where the one there is is right.

        Parameters
        ----------
        n_tokens : int
        shrink : bool
            A context is right only if it is the one that would be made for `n_tokens` alone.
        """
        size = self._sizes.size(n_tokens)
        if size == self.size or (size < self.size and not shrink):
            return None
        # both exist for a moment: should there be no memory for the new one, the old one goes on
        ctx = self._make(size)
        self.size = size
        return ctx
