"""Reading tokens: a context of one sequence, and the tokens that are stored in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

import numpy as np
import numpy.typing as npt

from . import _core
from ._checkpoints import Checkpoints
from ._following import FollowingContext
from ._loading import check_int
from ._paging import PagingWatch
from ._stored import StoredTokens
from ._tokens import as_tokens
from .config import InfLLMStats

if TYPE_CHECKING:
    from typing_extensions import Self

ProgressCallback = Callable[[int, int], object]
TraceCallback = Callable[[_core.TraceEvent], object]

N_ANSWER = 512  # tokens: where the context follows the text, answers up to here never move to a longer one


class Reader:
    """The part of `Llama` that holds the context: one call computes at a time."""

    _embedding: bool  # it computes embeddings, and stores nothing

    def __init__(
        self,
        model: _core.Model,
        ctx: _core.Context,
        n_ctx: int,
        progress: ProgressCallback | None,
        following: FollowingContext | None = None,
    ) -> None:
        self.progress = progress
        self._following = following

        self._n_forks = _core.n_forks()
        # reentrant, and a flag beside it: a signal handler may also run where only one of them is set
        self._lock = threading.RLock()
        self._is_computing = False
        self._version = 0  # of the stored tokens: a stream must not go on when another call changed them
        self._stored = StoredTokens()  # the memory is right where the two disagree, see _sync
        self._checkpoints = Checkpoints()
        self._has_logits = False
        self._trace: TraceCallback | None = None
        self._model_or_none: _core.Model | None = model
        self._ctx_or_none: _core.Context | None = ctx

        # llama.cpp rounds n_ctx up, and n_batch down
        self._n_ctx = n_ctx
        self._n_batch = ctx.n_batch()

        self._paging = PagingWatch()
        self._paging.look(ctx)

    # -- the object --------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the model and the context. May be called twice; waits for a call that computes."""
        if self._n_forks != _core.n_forks():
            self._ctx_or_none = self._model_or_none = None
            return
        with self._lock:
            self._check_not_computing()
            self._ctx_or_none = None
            self._model_or_none = None
            self._following = None  # which makes contexts of the model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "a Llama cannot be pickled or copied: make another one with the same arguments where it is needed"
        )

    @property
    def _model(self) -> _core.Model:
        self._check_process()
        if self._model_or_none is None:
            raise RuntimeError("this Llama is closed: make a new one")
        return self._model_or_none

    @property
    def _ctx(self) -> _core.Context:
        self._check_process()
        if self._ctx_or_none is None:
            raise RuntimeError("this Llama is closed: make a new one")
        return self._ctx_or_none

    def _check_process(self) -> None:
        if self._n_forks != _core.n_forks():
            raise RuntimeError(
                "this Llama was made before this process was forked, and works only where it was made: "
                'start the process by spawn (multiprocessing.get_context("spawn")) and make a Llama in it'
            )

    def _check_not_computing(self) -> None:
        """Called with the lock held, so by the thread that computes if there is one."""
        if self._is_computing:
            raise RuntimeError(
                "a callback or a signal handler must not use the Llama that is computing: there, call "
                "interrupt() or stats(), and what else there is to do after the call that computes"
            )

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Hold the context: no other call computes meanwhile."""
        self._check_process()  # a lock that another thread held when the process was forked is never released
        with self._lock:
            self._check_not_computing()
            try:
                self._is_computing = True
                self._sync()
                yield
            finally:
                self._is_computing = False

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the context for a call that changes the stored tokens and can be interrupted."""
        with self._computing():
            self._version += 1
            self._ctx.interrupt_clear()
            yield
            self._ctx.interrupt_check()

    # -- stored tokens -----------------------------------------------------------------------------

    @property
    def _tokens(self) -> list[int]:
        return self._stored.tokens

    @property
    def n_tokens(self) -> int:
        """Tokens stored."""
        return len(self._tokens)

    @property
    def tokens(self) -> list[int]:
        """The tokens stored, a copy."""
        return self._tokens.copy()

    def reset(self) -> None:
        """Forget all stored tokens."""
        with self._computing():
            self._version += 1
            self._truncate(0)

    def truncate(self, n_tokens: int) -> int:
        """Forget all but the first `n_tokens` stored tokens.

        A recurrent state cannot go back, and a sliding window not far. Then the context goes back to the last
        checkpoint before: where a text began that was given to `eval` or `prefill` after others, or the last
        ubatch of a prompt. The latest 8 are kept, of at most 512 MiB.

        Returns
        -------
        int
            Tokens stored now: `n_tokens`, or fewer where it takes a checkpoint, 0 where there is none.

        Raises
        ------
        ValueError
            When `n_tokens` is negative or more than are stored.
        """
        check_int("n_tokens", n_tokens)
        with self._computing():
            if not 0 <= n_tokens <= len(self._tokens):
                raise ValueError(
                    f"n_tokens = {n_tokens} is out of range: {len(self._tokens)} tokens are stored"
                )
            self._version += 1
            self._truncate(n_tokens)
            return len(self._tokens)

    def _truncate(self, n_tokens: int) -> None:
        if n_tokens == len(self._tokens):
            return
        self._has_logits = False
        if n_tokens > 0 and not self._ctx.seq_rm(n_tokens):
            n_tokens = self._checkpoints.restore(self._ctx, n_tokens)
        if n_tokens == 0:
            self._ctx.clear()
        self._checkpoints.forget_after(n_tokens)
        self._stored.truncate(n_tokens)

    def _sync(self) -> None:
        """Make the list of tokens and the memory agree, after an exception at any place.

        Tokens are appended to the list before they are decoded, and removed from it after they are removed
        from the memory: the list can only be too long.
        """
        n_past = self._ctx.n_past()
        if n_past == 0 and self._tokens:  # a recurrent state is lost where a ubatch failed
            n_past = self._checkpoints.restore(self._ctx, len(self._tokens))
        if n_past < len(self._tokens):
            self._stored.truncate(n_past)
            self._checkpoints.forget_after(n_past)
            self._has_logits = False

    def _take_over(self, other: Reader) -> None:
        """Become what `other` is."""
        if other._tokens:
            self._ctx.copy_state_from(other._ctx)
        self._stored = StoredTokens.of(other.tokens, other._stored.texts())
        self._checkpoints = Checkpoints.of(other._checkpoints.states())

    # -- evaluation --------------------------------------------------------------------------------

    @overload
    def eval(
        self,
        tokens: Sequence[int],
        all_logits: Literal[False] = False,
        progress: ProgressCallback | None = None,
    ) -> None: ...

    @overload
    def eval(
        self, tokens: Sequence[int], all_logits: Literal[True], progress: ProgressCallback | None = None
    ) -> npt.NDArray[np.float32]: ...

    def eval(
        self, tokens: Sequence[int], all_logits: bool = False, progress: ProgressCallback | None = None
    ) -> npt.NDArray[np.float32] | None:
        """Append tokens to those stored.

        Parameters
        ----------
        tokens : sequence of int
        all_logits : bool
            Return the logits of every token, not only keep those of the last one (see `logits`).
        progress : callable or None
            ``progress(n_done, n_total)`` after every batch; ``None``: the one given to the constructor.

        Returns
        -------
        ndarray of float32 or None
            Logits ``[len(tokens), n_vocab]`` with `all_logits`.

        Raises
        ------
        TypeError
            When a token is not an integer.
        ValueError
            When a token is not in the vocabulary, or there is no room for the tokens in `n_ctx`.
        MemoryError
            When the store cannot grow; the batches before the failing one stay stored.
        KeyboardInterrupt, InterruptedError
            After Ctrl-C, and after `interrupt`.
        """
        tokens = as_tokens(tokens, self._model.n_vocab())
        with self._changing():
            if not self._tokens:
                self._fit(min(len(tokens), self._n_ctx), shrink=True)
            return self._eval(tokens, all_logits, progress or self.progress)

    def _fit(self, n_tokens: int, shrink: bool = False) -> list[int]:
        """Make the context one for `n_tokens`, where it follows the text: the tokens that are stored no more.

        `shrink`: also where a shorter one is enough, so that what came before makes no difference.
        """
        following = self._following
        if following is None:
            return []
        try:
            ctx = following.resize(n_tokens, shrink)
        except MemoryError:
            return self._resize_alone(following, n_tokens, shrink)
        if ctx is None:
            return []
        stored = self.tokens
        self._truncate(0)
        self._take(ctx).interrupt_check()  # the new one does not know
        return stored

    def _resize_alone(self, following: FollowingContext, n_tokens: int, shrink: bool) -> list[int]:
        """As `_fit`, where memory has no room for both contexts: the one there is is given up first."""
        stored = self.tokens
        self._truncate(0)
        self._ctx_or_none = None
        try:
            ctx = following.resize(n_tokens, shrink)
            assert ctx is not None
        except BaseException:
            self._ctx_or_none = following.again()
            self._ctx.set_trace(self._trace is not None)
            self._eval(stored)
            raise
        ctx.set_trace(self._trace is not None)
        self._ctx_or_none = ctx
        return stored

    def _take(self, ctx: _core.Context) -> _core.Context:
        """Go on with another context; returns the one before."""
        ctx.set_trace(self._trace is not None)
        old, self._ctx_or_none = self._ctx, ctx
        return old

    def _eval(
        self,
        tokens: Sequence[int],
        all_logits: bool = False,
        progress: ProgressCallback | None = None,
        begin: int | None = None,
    ) -> npt.NDArray[np.float32] | None:
        """As `eval`; `begin`: where the text begins that the tokens end, if some of it is stored."""
        self._check_for_text()
        n_total = len(tokens)
        p0 = len(self._tokens)
        p1 = p0 + n_total
        if p1 > self._n_ctx:
            raise ValueError(
                f"{n_total} tokens after {p0} stored ones are more than "
                f"n_ctx = {self._n_ctx}: use a larger n_ctx, or reset()"
            )
        if stored := self._fit(p1):
            self._eval(stored, progress=progress)
        ctx = self._ctx
        ctx.check_tokens(p1)

        logits = np.empty((n_total, self._model.n_vocab()), dtype=np.float32) if all_logits else None
        outputs = _core.Context.Outputs
        question = p1  # where the last ubatch begins
        if n_total > 1:
            self._stored.begin_text(p0 if begin is None else begin, p1)
            self._checkpoints.add(ctx, p0)
            question = [p0, *ctx.ubatch_ends(p0, p1, ends=not all_logits)][-2]
        try:
            n_done = 0
            while n_done < n_total:
                pos = p0 + n_done
                end = ctx.batch_end(pos, p1, ends=not all_logits)
                if pos < question < end and ctx.needs_checkpoints():
                    end = question
                self._checkpoints.add(ctx, pos, passing=pos != question)
                i, n_done = n_done, end - p0
                batch = list(tokens[i:n_done])

                self._has_logits = False
                ends = ctx.ubatch_ends(pos, p1, ends=not all_logits)
                self._stored.append(batch, [e for e in ends if e <= end] if n_total > 1 else ())
                ctx.decode(
                    batch, outputs.ALL if all_logits else outputs.LAST if n_done == n_total else outputs.NONE
                )
                self._has_logits = n_done == n_total

                if logits is not None:
                    logits[i:n_done] = ctx.logits_rows(len(batch))
                if self._trace:
                    for event in ctx.take_trace():
                        self._trace(event)
                else:
                    self._paging.look(ctx)
                if progress:
                    progress(n_done, n_total)
        finally:
            self._sync()
        return logits

    def prefill(self, tokens: Sequence[int], progress: ProgressCallback | None = None) -> int:
        """Make the stored tokens `tokens`, and evaluate only what differs from those stored before.

        Returns
        -------
        int
            Tokens at the beginning that were stored already.

        Raises
        ------
        ValueError
            When `tokens` is empty or longer than `n_ctx`.
        TypeError, MemoryError, KeyboardInterrupt, InterruptedError
            As `eval`.
        """
        tokens = as_tokens(tokens, self._model.n_vocab())
        self._check_prompt(tokens)
        with self._changing():
            return self._prefill(tokens, progress or self.progress)

    def _check_for_text(self) -> None:
        if self._embedding:
            raise RuntimeError(
                "this Llama was made with embedding=True, for embeddings alone: make another one for text"
            )

    def _check_prompt(self, tokens: list[int]) -> None:
        self._check_for_text()
        if not tokens:
            raise ValueError("the prompt is empty: give at least one token")
        if len(tokens) > self._n_ctx:
            raise ValueError(
                f"the prompt has {len(tokens)} tokens, more than n_ctx = {self._n_ctx}: "
                "use a larger n_ctx or a shorter prompt"
            )

    def _prefill(self, tokens: list[int], progress: ProgressCallback | None) -> int:
        self._fit(min(len(tokens) + N_ANSWER, self._n_ctx), shrink=True)
        ctx = self._ctx
        ctx.check_tokens(len(tokens))  # before anything is forgotten
        n_cached, begin = self._stored.reusable(
            tokens, ctx.n_end(), lambda p0, p1: ctx.ubatch_ends(p0, p1, ends=True)
        )
        self._truncate(n_cached)
        n_cached = len(self._tokens)
        self._eval(tokens[n_cached:], progress=progress, begin=min(begin, n_cached))
        return n_cached

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """Logits of the last stored token, ``[n_vocab]``, a copy.

        Raises
        ------
        RuntimeError
            When no token was evaluated since the last reset or truncation.
        """
        with self._computing():
            self._check_logits()
            return self._ctx.logits()

    def _check_logits(self) -> None:
        if not self._has_logits:
            raise RuntimeError("there are no logits: evaluate tokens first")

    def interrupt(self) -> None:
        """Stop the call that computes in another thread: it raises InterruptedError.

        Where no call computes, nothing happens. A device may have to finish its batch first: it is kept then.
        """
        ctx = self._ctx_or_none
        if ctx is not None:
            ctx.interrupt()

    # -- statistics --------------------------------------------------------------------------------

    def stats(self) -> InfLLMStats | None:
        """Statistics of the InfLLM memory, in total and per layer; None without it.

        May be called from another thread while the object computes.
        """
        return InfLLMStats._from_context(self._ctx, range(self._model.n_layer()))

    def reset_stats(self) -> None:
        """Set the counters of `stats` to zero; the sizes stay."""
        self._ctx.reset_stats()

    def set_trace(self, callback: TraceCallback | None) -> None:
        """Call `callback` for every selection: per layer and ubatch, in order, after the batch was computed.

        Parameters
        ----------
        callback : callable or None
            Called with a `TraceEvent`; ``None`` ends the trace. Without the InfLLM memory nothing
            is ever selected. A device that pages keeps its scores to itself: as long as they are traced, the
            host pages.
        """
        with self._computing():
            self._ctx.set_trace(callback is not None)
            self._trace = callback
