"""Generating text: from a prompt of tokens to pieces of text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from ._loading import check_int
from ._reading import ProgressCallback, Reader
from ._sampling import Sampling, TokenLogprob
from ._text import TextStream
from .types import FinishReason, Timings, Usage


@dataclass
class Piece:
    """New text, the tokens that were drawn since the last piece; with the last one comes how it ended."""

    text: str
    tokens: list[TokenLogprob] | None = None  # where log probabilities are asked for
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None


class Generator(Reader):
    """The part of `Llama` that draws token after token."""

    _seed: int  # where a call gives none

    def _generate(
        self,
        tokens: list[int],
        *,
        max_tokens: int | None,
        stop: str | Sequence[str] | None,
        stream: bool,
        progress: ProgressCallback | None,
        seed: int | None,
        more_stops: Sequence[str] = (),
        **sampling: Any,
    ) -> Iterator[Piece]:
        """Check the arguments now; compute when iterated: a stream lets other calls in between its pieces."""
        self._check_prompt(tokens)

        stops = [stop] if isinstance(stop, str) else list(stop or ())
        if any(not isinstance(text, str) for text in stops):
            raise TypeError(f"stop = {stop!r} is neither a str nor a sequence of them")
        if "" in stops:
            raise ValueError("stop has an empty string, which would end every text at once: remove it")

        check_int("max_tokens", max_tokens)
        sampler = Sampling(self._model, seed=self._seed if seed is None else seed, **sampling)
        n_max = max_tokens if max_tokens is not None and max_tokens > 0 else self._n_ctx

        computing = self._computing if stream else nullcontext
        return self._pieces(
            tokens, sampler, TextStream([*stops, *more_stops]), n_max, progress or self.progress, computing
        )

    def _pieces(
        self,
        tokens: list[int],
        sampler: Sampling,
        text: TextStream,
        n_max: int,
        progress: ProgressCallback | None,
        computing: Callable[[], AbstractContextManager[None]],
    ) -> Iterator[Piece]:
        n_generated = n_evaluated = 0
        logprobs: list[TokenLogprob] = []
        finish_reason: FinishReason | None = None

        t_start = time.perf_counter()
        with computing():
            self._version += 1
            version = self._version
            self._ctx.interrupt_clear()

            n_cached = self._prefill(tokens, progress)
            sampler.accept(tokens)
            self._ctx.interrupt_check()
        t_prompt = time.perf_counter()

        t_predicted = 0.0
        token: int | None = None
        while finish_reason is None:
            t_step = time.perf_counter()
            with computing():
                if version != self._version:
                    raise RuntimeError("another call changed the stored tokens: this stream cannot go on")
                if token is not None:
                    self._eval([token])
                    n_evaluated += 1
                self._check_logits()
                new = ""
                if sampler.ends(self._ctx, self._tokens):
                    finish_reason = "stop"
                    break
                token, drawn = sampler.draw(self._ctx, self._tokens)
                if self._model.is_eog(token):
                    finish_reason = "stop"
                else:
                    if drawn is not None:
                        logprobs.append(drawn)
                    n_generated += 1
                    new = text.push(self._model.token_to_piece(token, token in sampler.preserved))
                    if text.stopped:
                        finish_reason = "stop"
                    elif n_generated == n_max or len(self._tokens) == self._n_ctx:
                        finish_reason = "length"
                self._ctx.interrupt_check()
            t_predicted += time.perf_counter() - t_step

            if finish_reason is None and new:
                yield Piece(new, logprobs or None)
                logprobs = []

        new += text.finish()
        n_prompt = len(tokens)
        ms_prompt, ms_predicted = 1e3 * (t_prompt - t_start), 1e3 * t_predicted
        yield Piece(
            new,
            logprobs or None,
            # a stop string may be completed by what was held back
            finish_reason="stop" if text.stopped else finish_reason,
            usage={
                "prompt_tokens": n_prompt,
                "completion_tokens": n_generated,
                "total_tokens": n_prompt + n_generated,
                "prompt_tokens_details": {"cached_tokens": n_cached},
            },
            timings={
                "cache_n": n_cached,
                "prompt_n": n_prompt - n_cached,
                "prompt_ms": ms_prompt,
                "prompt_per_second": 1e3 * (n_prompt - n_cached) / max(ms_prompt, 1e-6),
                "predicted_n": n_generated,
                "predicted_ms": ms_predicted,
                "predicted_per_second": 1e3 * n_evaluated / max(ms_predicted, 1e-6),
            },
        )
