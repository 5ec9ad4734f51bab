"""Tasks of retrieval, by name. The same seed gives the same text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from ..passkey import FILLER, TASK, make_passkey_prompt
from .asked import asked_both, asked_chat, asked_end
from .chat_recall import chat_recall
from .code_text import code_function
from .facts import CITIES, evenly, hide_and_ask, multi_needle, needle
from .haystack import N_ANSWER, N_ANSWERS, Haystack, Question, Sample
from .ruler import (
    common_words,
    frequent_words,
    multi_key,
    multi_query,
    multi_value,
    two_hop,
    variable_tracking,
)


def passkey(haystack: Haystack, n_tokens: int, depth: float, seed: int) -> Sample:
    """A number in a text of no meaning (see passkey.py)."""
    tokens, key = make_passkey_prompt(haystack.llm.tokenize, n_tokens, depth, seed)
    return Sample(tokens, [Question([], (key,))])


def multi_passkey(haystack: Haystack, n_tokens: int, depth: float, seed: int, n: int = 10) -> Sample:
    """Numbers in a text of no meaning, each of a city, all of them asked; `depth` is not used."""
    rng = random.Random(seed)
    keys = [(city, str(rng.randint(10000, 99999))) for city in rng.sample(CITIES, n)]
    needles = [
        (at, f"The pass key of {city} is {key}. Remember it. {key} is the pass key of {city}.")
        for at, (city, key) in zip(evenly(n), keys, strict=True)
    ]
    questions = [
        Question(
            haystack.encode(f" What was the pass key of {city} again? The pass key of {city} is"), (key,)
        )
        for city, key in keys
    ]
    filler = Haystack(haystack.llm, FILLER)
    filler.begin = haystack.begin + haystack.encode(TASK.strip())
    return hide_and_ask(filler, n_tokens, needles, questions)


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
    return Sample(tokens, [Question(question, (value,))])


RETRIEVAL: dict[str, Callable[[Haystack, int, float, int], Sample]] = {
    "passkey": passkey,
    "multi-passkey": multi_passkey,
    "needle": needle,
    "multi-needle": multi_needle,
    "kv-retrieval": kv_retrieval,
    "multi-key": multi_key,
    "multi-value": multi_value,
    "multi-query": multi_query,
    "variable-tracking": variable_tracking,
    "common-words": common_words,
    "frequent-words": frequent_words,
    "two-hop": two_hop,
    "chat-recall": chat_recall,
    "code-function": code_function,
    "asked-end": asked_end,
    "asked-both": asked_both,
    "asked-chat": asked_chat,
}
OF_LISTS = ("multi-value", "multi-query", "variable-tracking", "common-words", "frequent-words")
"""Tasks whose answer is a list, of at most `N_ANSWERS` tokens."""
OF_CODE = ("code-function",)
"""Tasks whose text is the standard library of the Python in use."""
OF_FILLER = ("passkey", "multi-passkey", "variable-tracking", "frequent-words", *OF_CODE)
"""Tasks that have no prose."""
WHOLE = ("multi-needle", "multi-passkey", "two-hop", *OF_LISTS)
"""Tasks that ask for all depths of one text."""
OF_TEXT = ("perplexity", "divergence")
"""Tasks that ask nothing, but look at the logits of every token."""
TASKS = (*RETRIEVAL, *OF_TEXT)


def fill(task: str, haystack: Haystack, n_ctx: int, depth: float, seed: int) -> Sample:
    """A sample of `RETRIEVAL` that fills `n_ctx` tokens together with a question and the longest answer."""
    return RETRIEVAL[task](haystack, n_ctx - (N_ANSWERS if task in OF_LISTS else N_ANSWER), depth, seed)
