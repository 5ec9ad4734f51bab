"""The kinds of tasks of RULER (Hsieh et al. 2024, arXiv 2404.06654, section 3), in texts of our own.

Its needles with a single key are `needle`, `passkey` and `kv_retrieval`. Answers that are lists are scored as
there, by the share that is found. `depth` is not used, but for `multi_key`.
"""

from __future__ import annotations

import math
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import cycle, islice

from ..passkey import FILLER
from .facts import CITIES, FOODS, evenly, facts, hide_and_ask
from .haystack import N_ANSWER, N_ANSWERS, Haystack, Question, Sample, most_that_fit
from .scores import any_found, share_found

PEOPLE = "Alice Bruno Clara David Elena Felix Greta Hugo Irene Jonas Karla Leo Marta Nina Oscar Paula".split()


def multi_key(haystack: Haystack, n_tokens: int, depth: float, seed: int, n: int = 4) -> Sample:
    """Facts alike in prose, one of them asked, which is at `depth`; the others are all over the text."""
    asked, *others = facts(seed, n)
    needles = [(depth, asked.text)]
    needles += [(at, fact.text) for at, fact in zip(evenly(n - 1), others, strict=True)]
    question = Question(haystack.encode(f"\n\n{asked.question} {asked.begin}"), (asked.answer,))
    return hide_and_ask(haystack, n_tokens, needles, [question])


def multi_value(haystack: Haystack, n_tokens: int, depth: float, seed: int, n: int = 4) -> Sample:
    """Several values of one key in prose, all asked at once."""
    rng = random.Random(seed)
    city, foods = rng.choice(CITIES), rng.sample(FOODS, n)
    needles = [
        (at, f"One of the best things to eat in {city} is {food}.")
        for at, food in zip(evenly(n), foods, strict=True)
    ]
    asked = f"\n\nWhat are the {n} best things to eat in {city}? The {n} best things to eat in {city} are"
    return hide_and_ask(haystack, n_tokens, needles, [_list_question(haystack, asked, foods)])


def multi_query(haystack: Haystack, n_tokens: int, depth: float, seed: int, n: int = 4) -> Sample:
    """Several facts in prose, asked in one question."""
    hidden = facts(seed, n)
    needles = [(at, fact.text) for at, fact in zip(evenly(n), hidden, strict=True)]
    asked = f"\n\n{' '.join(fact.question for fact in hidden)} {hidden[0].begin}"
    return hide_and_ask(
        haystack, n_tokens, needles, [_list_question(haystack, asked, [fact.answer for fact in hidden])]
    )


def variable_tracking(haystack: Haystack, n_tokens: int, depth: float, seed: int, n_hop: int = 4) -> Sample:
    """A value that goes from variable to variable, in a text of no meaning; the variables are asked."""
    rng = random.Random(seed)
    names = ["".join(rng.choices(string.ascii_uppercase, k=5)) for _ in range(n_hop + 1)]
    value = str(rng.randint(10000, 99999))
    sources = [value, *(f"VAR {name}" for name in names)]
    needles = [
        (at, f"VAR {name} = {source}.")
        for at, name, source in zip(evenly(n_hop + 1), names, sources, strict=False)
    ]
    asked = (
        f"\n\nWhich variables have the value {value}? The {n_hop + 1} variables that have the value {value} "
        "in the text above are: VAR"
    )
    filler = Haystack(haystack.llm, FILLER)
    return hide_and_ask(filler, n_tokens, needles, [_list_question(haystack, asked, names)])


def common_words(haystack: Haystack, n_tokens: int, depth: float, seed: int, n: int = 10) -> Sample:
    """A numbered list of words of the prose, in which ten are ten times as frequent as the others.

    They are there 30 times each, or less often where they would be more than half of the list.
    """
    words = list(_vocabulary(haystack.text))
    random.Random(seed).shuffle(words)
    common, others = words[:n], words[n:]

    def make(n_word: int) -> list[str]:
        n_common = min(30, n_word // (2 * n))
        n_rest = n_word - n * n_common
        rare = others[: n_rest // max(1, n_common // 10)]
        out = common * n_common + list(islice(cycle(rare), n_rest))
        random.Random(seed).shuffle(out)
        return [f"{i}. {word}" for i, word in enumerate(out, 1)]

    begin = "In this numbered list of words some are far more frequent than others.\n"
    asked = f"\n\nWhich {n} words are most frequent in the list? The {n} most frequent words are:"
    return _list_of_words(haystack, n_tokens, begin, make, asked, common)


def frequent_words(haystack: Haystack, n_tokens: int, depth: float, seed: int, n: int = 3) -> Sample:
    """Words of no meaning, as often as Zipf's law with exponent 2 says; the first are asked.

    The most frequent of all is "...", which does not count.
    """
    rng = random.Random(seed)
    words = [
        "...",
        *("".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(max(9, n_tokens // 50))),
    ]

    def make(n_word: int) -> list[str]:
        out = [word for i, word in enumerate(words, 1) for _ in range(int(n_word * 6 / (math.pi * i) ** 2))]
        random.Random(seed).shuffle(out)
        return out

    begin = "In this coded text some words are far more frequent than others; dots are no words.\n"
    asked = f"\n\nWhich {n} words are most frequent in the coded text? The {n} most frequent words are:"
    return _list_of_words(haystack, n_tokens, begin, make, asked, words[1 : n + 1])


def two_hop(haystack: Haystack, n_tokens: int, depth: float, seed: int, n: int = 4) -> Sample:
    """Who lives where, and what is best to eat there, in prose; what someone eats is asked.

    The facts are shuffled. An example shows both hops; the answer takes them by itself, and must contain the
    second. RULER takes its questions from HotpotQA.
    """
    rng = random.Random(seed)
    people, places = rng.sample(PEOPLE, n), facts(seed, n)
    texts = [fact.text for fact in places]
    texts += [f"{person} lives in {fact.city}." for person, fact in zip(people, places, strict=True)]
    rng.shuffle(texts)
    example = "Max lives in Cairo. The best thing to eat in Cairo is falafel. So Max eats falafel."
    asked = f"\n\n{example}\n\n{people[0]} lives in"
    question = Question(haystack.encode(asked), (places[0].answer,), any_found, N_ANSWER)
    return hide_and_ask(haystack, n_tokens, list(zip(evenly(2 * n), texts, strict=True)), [question])


def _list_question(haystack: Haystack, asked: str, answers: Sequence[str]) -> Question:
    return Question(haystack.encode(asked), tuple(answers), share_found, N_ANSWERS)


def _list_of_words(
    haystack: Haystack,
    n_tokens: int,
    begin: str,
    make: Callable[[int], list[str]],
    asked: str,
    answers: Sequence[str],
) -> Sample:
    """As many of the words that `make` gives as fit; the answers must be the most frequent ones."""
    question = _list_question(haystack, asked, answers)

    def read(n_word: int) -> list[int]:
        return haystack.llm.tokenize(begin + " ".join(make(n_word)))

    n_word = most_that_fit(read, n_tokens - len(question.tokens))
    counts = Counter(word.split()[-1] for word in make(n_word))
    del counts["..."]
    if {word for word, _ in counts.most_common(len(answers))} != set(answers):
        raise ValueError(f"n_tokens = {n_tokens} gives no list with clear most frequent words: use another")
    return Sample(read(n_word), [question])


@lru_cache(maxsize=1)
def _vocabulary(text: str) -> tuple[str, ...]:
    """Words of five to eight small letters, each once."""
    return tuple(dict.fromkeys(re.findall(r"\b[a-z]{5,8}\b", text)))
