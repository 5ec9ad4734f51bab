"""Made-up facts, hidden in prose and asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from .haystack import Haystack, Question, Sample

CITIES = (
    "Lisbon Oslo Nairobi Denver Kyoto Bogota Warsaw Hanoi Dublin Quito Sydney Havana Vienna Tunis Seattle "
    "Lima"
).split()
FOODS = (
    "pizza pancakes sushi chili ramen tacos dumplings noodles waffles paella lasagna curry burgers "
    "cheesecake popcorn chocolate"
).split()


class Fact(NamedTuple):
    """A sentence, the question that asks for it, how its answer begins, and how it goes on."""

    city: str
    text: str
    question: str
    begin: str
    answer: str


def facts(seed: int, n: int) -> list[Fact]:
    """`n` cities with a food each."""
    rng = random.Random(seed)
    return [
        Fact(
            city,
            f"The best thing to eat in {city} is {food}.",
            f"What is the best thing to eat in {city}?",
            f"The best thing to eat in {city} is",
            food,
        )
        for city, food in zip(rng.sample(CITIES, n), rng.sample(FOODS, n), strict=True)
    ]


def evenly(n: int) -> list[float]:
    """`n` depths, each in the middle of its part of the text."""
    return [(i + 0.5) / n for i in range(n)]


def hide_and_ask(
    haystack: Haystack, n_tokens: int, needles: Sequence[tuple[float, str]], questions: list[Question]
) -> Sample:
    """Sentences hidden at depths; text and the longest question have at most `n_tokens` tokens."""
    room = max(len(question.tokens) for question in questions)
    return Sample(haystack.hide(n_tokens - room, needles), questions)


def needle(haystack: Haystack, n_tokens: int, depth: float, seed: int) -> Sample:
    """One fact in real prose."""
    return _facts_in_prose(haystack, n_tokens, facts(seed, 1), [depth])


def multi_needle(haystack: Haystack, n_tokens: int, depth: float, seed: int, n: int = 4) -> Sample:
    """Several facts all over the prose, all of them asked; `depth` is not used."""
    return _facts_in_prose(haystack, n_tokens, facts(seed, n), evenly(n))


def _facts_in_prose(
    haystack: Haystack, n_tokens: int, hidden: Sequence[Fact], depths: Sequence[float]
) -> Sample:
    questions = [
        Question(haystack.encode(f"\n\n{fact.question} {fact.begin}"), (fact.answer,)) for fact in hidden
    ]
    needles = [(depth, fact.text) for depth, fact in zip(depths, hidden, strict=True)]
    return hide_and_ask(haystack, n_tokens, needles, questions)
