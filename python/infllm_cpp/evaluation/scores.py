"""How right an answer is, from 0 to 1, by the rules that each benchmark has published.

RULER (Hsieh et al. 2024, arXiv 2404.06654): scripts/eval/synthetic/constants.py of NVIDIA/RULER.
LongBench (Bai et al. 2023, arXiv 2308.14508): LongBench/metrics.py and eval.py of THUDM/LongBench.
InfiniteBench (Zhang et al. 2024, arXiv 2402.13718): src/compute_scores.py of OpenBMB/InfiniteBench.
"""

from __future__ import annotations

import importlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ..passkey import is_right

Score = Callable[[str, Sequence[str]], float]
"""An answer, what is expected, and how right it is."""


def begins(answer: str, expected: Sequence[str]) -> float:
    """1 if an answer begins with an expected text, in any case of letters: "a ramen" is not "ramen"."""
    return float(any(is_right(answer, text) for text in expected))


# -- RULER -------------------------------------------------------------------------------------------


def share_found(answer: str, expected: Sequence[str]) -> float:
    """Share of the expected texts that an answer contains, in any case of letters (string_match_all)."""
    return sum(text.lower() in answer.lower() for text in expected) / len(expected)


def any_found(answer: str, expected: Sequence[str]) -> float:
    """1 if an answer contains one of the expected texts, in any case of letters (string_match_part)."""
    return float(any(text.lower() in answer.lower() for text in expected))


# -- LongBench: the best of all expected texts -------------------------------------------------------


def f1(answer: str, expected: Sequence[str]) -> float:
    """F1 of words, without articles, punctuation and case (qa_f1_score)."""

    def parts(text: str) -> list[str]:
        plain = "".join(char for char in text.lower() if char not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", plain).split()

    return max(_overlap(parts(answer), parts(text)) for text in expected)


def f1_zh(answer: str, expected: Sequence[str]) -> float:
    """F1 of Chinese words, as jieba finds them (qa_f1_zh_score)."""
    jieba = _library("jieba")

    def parts(text: str) -> list[str]:
        return [word for word in map(_plain_zh, jieba.cut(text)) if word]

    return max(_overlap(parts(answer), parts(text)) for text in expected)


def rouge_l(answer: str, expected: Sequence[str]) -> float:
    """ROUGE-L, F1, of the package rouge (rouge_score)."""
    rouge = _library("rouge").Rouge(metrics=["rouge-l"])
    try:
        return max(float(rouge.get_scores(answer, text)[0]["rouge-l"]["f"]) for text in expected)
    except (ValueError, RecursionError):  # no words, or more in a sentence than the package can take
        return 0.0


def rouge_l_zh(answer: str, expected: Sequence[str]) -> float:
    """The same of Chinese words, as jieba finds them (rouge_zh_score)."""
    jieba = _library("jieba")
    return rouge_l(" ".join(jieba.cut(answer)), [" ".join(jieba.cut(text)) for text in expected])


def of_class(classes: Sequence[str]) -> Score:
    """1 if an answer names the expected class, less if it names others too (classification_score)."""

    def score(answer: str, expected: Sequence[str]) -> float:
        def one(text: str) -> float:
            # a class that is a part of the expected one does not count as another
            named = [name for name in classes if name in answer and (name == text or name not in text)]
            return 1 / len(named) if text in named else 0.0

        return max(map(one, expected))

    return score


def number(answer: str, expected: Sequence[str]) -> float:
    """Share of the numbers in an answer that are the expected one (count_score, retrieval_score)."""
    said = re.findall(r"\d+", answer)
    return max(said.count(re.findall(r"\d+", text)[0]) / max(1, len(said)) for text in expected)


def code_similarity(answer: str, expected: Sequence[str]) -> float:
    """Edit similarity of the first line of code, in whole percent (code_sim_score)."""
    ratio = _library("rapidfuzz.fuzz").ratio
    lines = (line for line in answer.lstrip("\n").split("\n") if not re.search("[`#]|//", line))
    line = next(lines, "")
    return max(round(float(ratio(line, text))) / 100 for text in expected)


def of_first_line(score: Score) -> Score:
    """A score of an answer's first line alone."""
    return lambda answer, expected: score(answer.lstrip("\n").split("\n")[0], expected)


# -- InfiniteBench -----------------------------------------------------------------------------------


def first_number(answer: str, expected: Sequence[str]) -> float:
    """1 if the first digits of an answer are the expected ones (passkey, number_string)."""
    return float(re.findall(r"\d+", answer)[:1] == list(expected[:1]))


def first_value(answer: str, expected: Sequence[str]) -> float:
    """1 if the first number of an answer, which can have decimals, is the expected one (math_find)."""
    said = re.search(r"\d+\.\d+|\d+", answer)
    return float(said is not None and float(said[0]) == float(expected[0]))


def last_integer(answer: str, expected: Sequence[str]) -> float:
    """1 if the last word of an answer is the expected integer (code_run)."""
    return float(re.sub("[\n.`'\":]", " ", answer).split()[-1:] == list(expected[:1]))


def a_word(answer: str, expected: Sequence[str]) -> float:
    """1 if the expected text is a word of an answer (kv_retrieval)."""
    return float(expected[0] in _words(answer))


def a_name(answer: str, expected: Sequence[str]) -> float:
    """1 if the expected name is a word of an answer, in any case of letters (longdialogue_qa_eng)."""
    return float(expected[0] in _words(answer.upper()))


def first_values(answer: str, expected: Sequence[str]) -> float:
    """Share of the expected numbers that an answer has before the first wrong one (math_calc)."""
    n_right = 0
    for said, text in zip(re.findall(r"\d+", answer), expected, strict=False):
        if int(said) != int(text):
            break
        n_right += 1
    return n_right / len(expected)


def option(answer: str, expected: Sequence[str]) -> float:
    """1 if an answer is the letter or the text of the right option (longbook_choice_eng).

    The letter begins the answer, follows "answer is:" and the like, or is the first single one.
    """
    answer = answer.strip()
    if answer[:1] in tuple("ABCD"):
        return float(answer[0] in expected)
    if answer in expected:
        return 1.0
    answer = " ".join(re.sub("[\n\"'.,?!{}]", " ", answer).split())
    after = _after(answer, ("answer is:", "answer:", "answer is", "option is"), expected)
    if after is not None:
        return after
    return float(next((word for word in answer.split() if word in "ABCD"), None) in expected)


def faulty_function(answer: str, expected: Sequence[str]) -> float:
    """1 if an answer begins with the letter of the right option, or says it after "is:" (code_debug)."""
    name, letter = expected
    answer = answer.strip()
    if answer[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    answer = " ".join(re.sub("[\n`'\"*-]|[Oo]ption", " ", answer).split())
    return _after(answer, ("answer is:", "is:", "answer:"), (letter, name)) or 0.0


def f1_of_characters(answer: str, expected: Sequence[str]) -> float:
    """F1 of Chinese characters (longbook_qa_chn)."""
    return max(_overlap(list(_plain_zh(answer)), list(_plain_zh(text))) for text in expected)


def rouge_l_sum(answer: str, expected: Sequence[str]) -> float:
    """ROUGE-Lsum, F1, of the package rouge-score (longbook_sum_eng)."""
    scorer = _library("rouge_score.rouge_scorer").RougeScorer(["rougeLsum"])
    return max(float(scorer.score(text, answer)["rougeLsum"].fmeasure) for text in expected)


# ----------------------------------------------------------------------------------------------------


def _library(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise RuntimeError(
            f'scores of this file need {module.split(".")[0]}: install it with pip install "infllm-cpp[eval]"'
        ) from None


def _overlap(said: Sequence[str], expected: Sequence[str]) -> float:
    """F1 of two lists of words, in any order."""
    n_same = (Counter(said) & Counter(expected)).total()
    return 2 * n_same / (len(said) + len(expected)) if n_same else 0.0


def _plain_zh(text: str) -> str:
    """Chinese without punctuation, symbols and white space, in small letters."""
    return "".join(char for char in text.lower() if unicodedata.category(char)[0] not in "PSZC")


def _words(text: str) -> list[str]:
    return re.sub("[\n:\"'.,?!{}]", " ", text).split()


def _after(answer: str, marks: Sequence[str], expected: Sequence[str]) -> float | None:
    """1 if an expected text comes a character after the first of the marks that is there; None if none is."""
    for mark in marks:
        if mark in answer:
            after = answer.split(mark, 1)[1][1:]
            return float(any(after.startswith(text) for text in expected))
    return None
