"""Tasks: a long text, questions about it, and the right answers. The same seed gives the same text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..passkey import FILLER, TASK, make_passkey_prompt
from .prose import sentences

Tokenize = Callable[..., list[int]]

CITIES = (
    "Lisbon Oslo Nairobi Denver Kyoto Bogota Warsaw Hanoi Dublin Quito Sydney Havana Vienna Tunis Seattle "
    "Lima"
).split()
FOODS = (
    "pizza pancakes sushi chili ramen tacos dumplings noodles waffles paella lasagna curry burgers "
    "cheesecake popcorn chocolate"
).split()

N_ANSWER = 32  # most tokens of an answer


@dataclass(frozen=True)
class Question:
    """Tokens to append to the text, and how the answer must begin."""

    tokens: list[int]
    answer: str


@dataclass(frozen=True)
class Sample:
    """A text of at most the asked length, and what is asked about it."""

    tokens: list[int]
    questions: list[Question]


class Haystack:
    """Prose that is tokenised once, sentence by sentence, and cut to any length.

    Parameters
    ----------
    tokenize : callable
        `Llama.tokenize`.
    text : str
        Prose.
    """

    def __init__(self, tokenize: Tokenize, text: str) -> None:
        self.tokenize = tokenize
        self._sentences = sentences(text)
        self._tokens: list[list[int]] = []
        self.begin = tokenize("", add_bos=True)

    def encode(self, text: str) -> list[int]:
        """Tokens of a piece of text that does not begin the prompt."""
        return self.tokenize(text, add_bos=False)

    def cut(self, n_tokens: int, first: int = 0) -> list[list[int]]:
        """`n_tokens` tokens in sentences, from number `first` on, over and over; the last may be cut."""
        out, n_left = [], n_tokens
        for i in range(first, first + n_tokens):
            index = i % len(self._sentences)
            while len(self._tokens) <= index:
                self._tokens.append(self.encode(self._sentences[len(self._tokens)]))
            tokens = self._tokens[index]
            out.append(tokens[:n_left])
            n_left -= len(tokens)
            if n_left <= 0:
                break
        return out

    def hide(self, n_tokens: int, needles: Sequence[tuple[float, str]]) -> list[int]:
        """Prose with sentences hidden at depths from 0 (begin) to 1 (end), of at most `n_tokens` tokens."""
        hidden = [(depth, self.encode(" " + text)) for depth, text in needles]
        n_prose = n_tokens - len(self.begin) - sum(len(tokens) for _, tokens in hidden)
        if n_prose < 0:
            raise ValueError(f"n_tokens = {n_tokens} is too small for the {len(needles)} facts to hide")
        prose = self.cut(n_prose)
        for depth, tokens in sorted(hidden, key=lambda item: -item[0]):
            prose.insert(round(depth * len(prose)), tokens)
        return self.begin + [token for tokens in prose for token in tokens]


def passkey(haystack: Haystack, n_tokens: int, depth: float, seed: int) -> Sample:
    """A number in a text of no meaning (see passkey.py)."""
    tokens, key = make_passkey_prompt(haystack.tokenize, n_tokens, depth, seed)
    return Sample(tokens, [Question([], key)])


def multi_passkey(haystack: Haystack, n_tokens: int, depth: float, seed: int, n: int = 10) -> Sample:
    """Numbers in a text of no meaning, each of a city, all of them asked; `depth` is not used."""
    rng = random.Random(seed)
    keys = [(city, str(rng.randint(10000, 99999))) for city in rng.sample(CITIES, n)]
    facts = [
        (
            f"The pass key of {city} is {key}. Remember it. {key} is the pass key of {city}.",
            f" What was the pass key of {city} again? The pass key of {city} is",
            key,
        )
        for city, key in keys
    ]
    filler = Haystack(haystack.tokenize, FILLER)
    filler.begin = haystack.begin + haystack.encode(TASK.strip())
    return _with_questions(filler, n_tokens, facts, [(i + 0.5) / n for i in range(n)])


def _facts(seed: int, n: int) -> Iterator[tuple[str, str, str]]:
    """Fact, question, answer: n cities with a food each."""
    rng = random.Random(seed)
    for city, food in zip(rng.sample(CITIES, n), rng.sample(FOODS, n), strict=True):
        yield (
            f"The best thing to eat in {city} is {food}.",
            f"\n\nWhat is the best thing to eat in {city}? The best thing to eat in {city} is",
            food,
        )


def _with_questions(
    haystack: Haystack, n_tokens: int, facts: Sequence[tuple[str, str, str]], depths: Sequence[float]
) -> Sample:
    questions = [Question(haystack.encode(question), answer) for _, question, answer in facts]
    room = max(len(question.tokens) for question in questions)
    needles = [(depth, fact) for depth, (fact, _, _) in zip(depths, facts, strict=True)]
    return Sample(haystack.hide(n_tokens - room, needles), questions)


def needle(haystack: Haystack, n_tokens: int, depth: float, seed: int) -> Sample:
    """One fact in real prose."""
    return _with_questions(haystack, n_tokens, list(_facts(seed, 1)), [depth])


def multi_needle(haystack: Haystack, n_tokens: int, depth: float, seed: int, n: int = 4) -> Sample:
    """Several facts all over the prose, all of them asked; `depth` is not used."""
    return _with_questions(haystack, n_tokens, list(_facts(seed, n)), [(i + 0.5) / n for i in range(n)])


def kv_retrieval(haystack: Haystack, n_tokens: int, depth: float, seed: int) -> Sample:
    """JSON lines of keys and values, one key asked (InfiniteBench, arXiv 2402.13718, section 3).

    `depth` is that of the asked key; the text is the same for all.
    """
    rng = random.Random(seed)
    pairs: list[tuple[str, str]] = []
    lines: list[list[int]] = []
    first = haystack.begin + haystack.encode("JSON data:\n")
    n_left = n_tokens - len(first) - 64
    while True:
        pair = f"{rng.getrandbits(32):08x}", f"{rng.getrandbits(32):08x}"
        line = haystack.encode(json.dumps(dict([pair])) + "\n")
        n_left -= len(line)
        if n_left <= 0:
            break
        pairs.append(pair)
        lines.append(line)
    if not pairs:
        raise ValueError(f"n_tokens = {n_tokens} is too small for key-value lines")
    key, value = pairs[min(int(depth * len(pairs)), len(pairs) - 1)]
    question = haystack.encode(f'\nThe same line again:\n{{"{key}": "')
    tokens = first + [token for line in lines for token in line]
    return Sample(tokens, [Question(question, value)])


RETRIEVAL: dict[str, Callable[[Haystack, int, float, int], Sample]] = {
    "passkey": passkey,
    "multi-passkey": multi_passkey,
    "needle": needle,
    "multi-needle": multi_needle,
    "kv-retrieval": kv_retrieval,
}
OF_FILLER = ("passkey", "multi-passkey")
"""Tasks that have no prose."""
WHOLE = ("multi-needle", "multi-passkey")
"""Tasks that ask for all depths of one text."""
OF_TEXT = ("perplexity", "divergence")
"""Tasks that ask nothing, but look at the logits of every token."""
TASKS = (*RETRIEVAL, *OF_TEXT)


def fill(task: str, haystack: Haystack, n_ctx: int, depth: float, seed: int) -> Sample:
    """A sample of `RETRIEVAL` that fills `n_ctx` tokens together with a question and `N_ANSWER` tokens."""
    return RETRIEVAL[task](haystack, n_ctx - N_ANSWER, depth, seed)
