"""How the next token is drawn: the parameters of a completion, checked, and what they do to the logits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _core
from ._loading import check_int, check_range
from .grammar import LlamaGrammar

LogitsProcessor: TypeAlias = Callable[
    [npt.NDArray[np.intc], npt.NDArray[np.float32]], npt.NDArray[np.float32]
]
"""``processor(tokens, logits)``: the tokens so far, and logits of the next one; it returns other ones."""

StoppingCriteria: TypeAlias = Callable[[npt.NDArray[np.intc], npt.NDArray[np.float32]], bool]
"""``criterion(tokens, logits)``: whether the text ends here, before a token is drawn from these logits."""

PENALTY_LAST_N = 64  # llama-cpp-python's last_n_tokens_size


@dataclass(frozen=True)
class TokenLogprob:
    """A token that was drawn, its log probability in nats, and the most likely ones, best first."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


def _as_list(name: str, value: Any) -> list[Callable[..., Any]]:
    """A callable, or several; lists that can be called, as llama-cpp-python's, are several."""
    items = list(value) if isinstance(value, Iterable) else [] if value is None else [value]
    for item in items:
        if not callable(item):
            raise TypeError(f"{name} = {item!r} cannot be called: give a function of tokens and logits")
    return items


def _biases(logit_bias: Mapping[Any, Any] | None, n_vocab: int) -> dict[int, float]:
    out: dict[int, float] = {}
    for key, value in (logit_bias or {}).items():
        try:
            token, bias = int(key), float(value)
        except (TypeError, ValueError):
            raise TypeError(f"logit_bias has {key!r}: {value!r}, which is no token and number") from None
        if not 0 <= token < n_vocab:
            raise ValueError(f"logit_bias has token {token}: the vocabulary has {n_vocab}")
        if math.isnan(bias):
            raise ValueError(f"logit_bias of token {token} is not a number")
        out[token] = bias
    return out


def response_schema(response_format: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The JSON schema of OpenAI's `response_format`; None for text.

    Raises
    ------
    ValueError
        When its type is unknown, or it has no schema that a grammar can be made of.
    """
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_schema":
        schema = (response_format.get("json_schema") or {}).get("schema")
    elif kind == "json_object":
        schema = response_format.get("schema") or {"type": "object"}
    else:
        raise ValueError(f"response_format has the type {kind!r}: use 'text', 'json_object' or 'json_schema'")
    if not isinstance(schema, Mapping):
        raise ValueError("response_format has no JSON schema")
    schema = schema or {"type": "object"}
    LlamaGrammar.from_json_schema(json.dumps(schema))
    return schema


class Sampling:
    """The parameters of a completion that decide which token is next.

    With a `chat` also what its format asks of an answer; its `preserved` special tokens are part of the text.

    Raises
    ------
    TypeError, ValueError
        When one has a wrong type, or is out of range; its name is in the message.
    """

    def __init__(
        self,
        model: _core.Model,
        *,
        seed: int,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        typical_p: float,
        repeat_penalty: float,
        frequency_penalty: float,
        presence_penalty: float,
        mirostat_mode: int,
        mirostat_tau: float,
        mirostat_eta: float,
        logit_bias: Mapping[Any, Any] | None,
        grammar: LlamaGrammar | str | None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None,
        stopping_criteria: StoppingCriteria | Sequence[StoppingCriteria] | None,
        n_logprobs: int | None,
        chat: _core.ChatPrompt | None = None,
    ) -> None:
        check_int("seed", seed, 0, 2**32 - 1)
        check_range("temperature", temperature, 0, float("inf"))
        check_int("top_k", top_k, 0, 2**31 - 1)
        for name, value in (("top_p", top_p), ("min_p", min_p), ("typical_p", typical_p)):
            check_range(name, value, 0, 1)
        check_range("repeat_penalty", repeat_penalty, 1e-6, 1e6)
        check_range("frequency_penalty", frequency_penalty, -1e6, 1e6)
        check_range("presence_penalty", presence_penalty, -1e6, 1e6)
        check_int("mirostat_mode", mirostat_mode, 0, 2)
        check_range("mirostat_tau", mirostat_tau, 0, 1e6)
        check_range("mirostat_eta", mirostat_eta, 0, 1)

        options = _core.SamplerOptions()
        options.seed = seed
        options.temperature = temperature
        options.top_k = top_k
        options.top_p = top_p
        options.min_p = min_p
        options.typical_p = typical_p
        options.repeat_penalty = repeat_penalty
        options.frequency_penalty = frequency_penalty
        options.presence_penalty = presence_penalty
        options.penalty_last_n = PENALTY_LAST_N
        options.mirostat_mode = mirostat_mode
        options.mirostat_tau = mirostat_tau
        options.mirostat_eta = mirostat_eta
        options.logit_bias = _biases(logit_bias, model.n_vocab())
        if isinstance(grammar, str):
            grammar = LlamaGrammar(grammar)
        if grammar is not None and not isinstance(grammar, LlamaGrammar):
            raise TypeError(f"grammar = {grammar!r} is neither a LlamaGrammar nor a str")
        options.grammar = "" if grammar is None else grammar.text
        self._processors: list[LogitsProcessor] = _as_list("logits_processor", logits_processor)
        self._criteria: list[StoppingCriteria] = _as_list("stopping_criteria", stopping_criteria)
        self._n_logprobs = n_logprobs
        self.preserved = frozenset(chat.preserved_tokens(model)) if chat else frozenset()
        try:
            self._sampler = _core.Sampler(model, options, chat)
        except RuntimeError as err:
            raise ValueError(f"grammar is not GBNF that llama.cpp can read ({err})") from None

    def accept(self, prompt: Sequence[int]) -> None:
        """Let the end of a prompt count for the penalties."""
        self._sampler.accept(prompt[-PENALTY_LAST_N:])

    def ends(self, ctx: _core.Context, tokens: Sequence[int]) -> bool:
        """Whether a criterion ends the text."""
        if not self._criteria:
            return False
        array, logits = np.asarray(tokens, dtype=np.intc), ctx.logits()
        return any(criterion(array, logits) for criterion in self._criteria)

    def draw(self, ctx: _core.Context, tokens: Sequence[int]) -> tuple[int, TokenLogprob | None]:
        """The token that follows `tokens`, by the logits of the context."""
        if not self._processors and self._n_logprobs is None:
            return self._sampler.sample(ctx), None
        logits = ctx.logits()
        if self._processors:
            array, changed = np.asarray(tokens, dtype=np.intc), logits.copy()
            for processor in self._processors:
                changed = np.asarray(processor(array, changed), dtype=np.float32)
            if changed.shape != logits.shape or np.isnan(changed).any():
                raise ValueError(
                    f"logits_processor returned {changed.shape} values: there must be {len(logits)} numbers"
                )
            ctx.set_logits(changed)
        try:
            token = self._sampler.sample(ctx)
        finally:
            if self._processors:
                ctx.set_logits(logits)  # they stay what the model has computed
        return token, None if self._n_logprobs is None else _logprob(logits, token, self._n_logprobs)


def _logprob(logits: npt.NDArray[np.float32], token: int, n_top: int) -> TokenLogprob:
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    best = np.argpartition(-values, n_top - 1)[:n_top] if n_top > 0 else np.array([], dtype=np.intp)
    best = best[np.argsort(-values[best], kind="stable")]
    return TokenLogprob(token, float(values[token]), [(int(i), float(values[i])) for i in best])
