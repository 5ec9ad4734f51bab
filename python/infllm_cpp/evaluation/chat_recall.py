"""What was said once in a long chat, asked in its last turn."""

from __future__ import annotations

import random
from itertools import pairwise

from ..types import ChatMessage
from .facts import FOODS
from .haystack import Haystack, Question, Sample, most_that_fit

BEGIN = "By the way, my favourite food is"
REPLIES = ("I see.", "Go on.", "Thank you.", "How interesting.")


def chat_recall(haystack: Haystack, n_tokens: int, depth: float, seed: int, n_turn: int = 60) -> Sample:
    """A chat of 60 turns of prose in the chat template of the model; the one at `depth` has the fact."""
    food = random.Random(seed).choice(FOODS)
    place = round(depth * (n_turn - 2))  # the last turn is the question

    def make(n_word: int) -> list[int]:
        words = haystack.words(n_word)
        ends = [i * n_word // (n_turn - 2) for i in range(n_turn - 1)]
        said = ["".join(words[begin:end]).strip() for begin, end in pairwise(ends)]
        said.insert(place, f"{BEGIN} {food}.")
        messages: list[ChatMessage] = []
        for i, text in enumerate(said):
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": REPLIES[i % len(REPLIES)]})
        messages.append({"role": "user", "content": "What did I say about my favourite food?"})
        return haystack.llm.chat_tokens(messages) + haystack.encode(f'You said: "{BEGIN}')

    return Sample(make(most_that_fit(make, n_tokens)), [Question([], (food,))])
