"""The same fact in the same text, asked in three ways: after it, before and after it, and in a chat."""

from __future__ import annotations

from collections.abc import Callable

from ..types import ChatMessage
from .facts import facts
from .haystack import Haystack, Question, Sample, most_that_fit


def asked_end(haystack: Haystack, n_tokens: int, depth: float, seed: int) -> Sample:
    """The text, then the question."""
    return _asked(haystack, n_tokens, depth, seed, 0)


def asked_both(haystack: Haystack, n_tokens: int, depth: float, seed: int) -> Sample:
    """The question, the text, and the question again."""
    return _asked(haystack, n_tokens, depth, seed, 1)


def asked_chat(haystack: Haystack, n_tokens: int, depth: float, seed: int) -> Sample:
    """The text and the question as a message of the user, in the chat template of the model."""
    return _asked(haystack, n_tokens, depth, seed, 2)


def _asked(haystack: Haystack, n_tokens: int, depth: float, seed: int, way: int) -> Sample:
    """A fact of `facts.needle` in as much prose as the longest of the three ways has room for."""
    llm, fact = haystack.llm, facts(seed, 1)[0]

    def document(n_word: int) -> str:
        words = haystack.words(n_word)
        place = round(depth * n_word)
        while 0 < place < n_word and words[place - 1][-1] not in ".!?":
            place += 1
        return "".join([*words[:place], " " + fact.text, *words[place:]]).strip()

    def in_chat(text: str) -> list[int]:
        messages: list[ChatMessage] = [{"role": "user", "content": f"{text}\n\n{fact.question}"}]
        return llm.chat_tokens(messages) + haystack.encode(fact.begin)

    ways: tuple[Callable[[str], list[int]], ...] = (
        lambda text: llm.tokenize(f"{text}\n\n{fact.question} {fact.begin}"),
        lambda text: llm.tokenize(f"{fact.question}\n\n{text}\n\n{fact.question} {fact.begin}"),
        in_chat,
    )
    n_word = most_that_fit(lambda n: max((make(document(n)) for make in ways), key=len), n_tokens)
    return Sample(ways[way](document(n_word)), [Question([], (fact.answer,))])
