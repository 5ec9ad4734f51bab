"""Benchmarks of long texts in files: LongBench, InfiniteBench and RULER, as JSON lines.

Lengths of answers and scores are those of the benchmarks (their sources: scores.py). The prompts are our own,
unless the published ones are given, and no chat template is around them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .._files import read_text_file
from ..llama import Llama
from . import scores
from .haystack import Question, Sample
from .scores import Score

_QA = "Answer the question by the text, in few words.\n\n{context}\n\nQuestion: {input}\nAnswer:"
_SUMMARY = "{context}\n\n{input}\nA summary of the text above:"
_EXAMPLES = "{context}\n{input}"
_COUNT = (
    "{context}\n\nSome of these paragraphs are there several times. The number of different paragraphs is:"
)
_PARAGRAPH = "{context}\n\nWhich of these paragraphs has the following summary?\n\n{input}\n\n{mark}"
_OPTIONS = "\nA. {options[0]}\nB. {options[1]}\nC. {options[2]}\nD. {options[3]}\n"


@dataclass(frozen=True)
class Kind:
    """What a data set asks: its prompt, the most tokens of an answer, and its score."""

    prompt: str
    n_answer: int
    score: Score


_LONGBENCH = {
    **dict.fromkeys(("narrativeqa", "qasper"), Kind(_QA, 128, scores.f1)),
    "multifieldqa_en": Kind(_QA, 64, scores.f1),
    "multifieldqa_zh": Kind(_QA, 64, scores.f1_zh),
    **dict.fromkeys(("hotpotqa", "2wikimqa", "musique"), Kind(_QA, 32, scores.f1)),
    "dureader": Kind(_QA, 128, scores.rouge_l_zh),
    **dict.fromkeys(("gov_report", "multi_news"), Kind(_SUMMARY, 512, scores.rouge_l)),
    "qmsum": Kind(_QA, 512, scores.rouge_l),
    "vcsum": Kind(_SUMMARY, 512, scores.rouge_l_zh),
    **dict.fromkeys(("trec", "lsht"), Kind(_EXAMPLES, 64, scores.begins)),  # scored by the classes of the row
    "triviaqa": Kind(_EXAMPLES, 32, scores.of_first_line(scores.f1)),
    "samsum": Kind(_EXAMPLES, 128, scores.of_first_line(scores.rouge_l)),
    "passage_count": Kind(_COUNT, 32, scores.number),
    "passage_retrieval_en": Kind(_PARAGRAPH.replace("{mark}", "Paragraph"), 32, scores.number),
    "passage_retrieval_zh": Kind(_PARAGRAPH.replace("{mark}", "段落"), 32, scores.number),
    **dict.fromkeys(("lcc", "repobench-p"), Kind("{context}{input}", 64, scores.code_similarity)),
}
_INFINITEBENCH = {
    "passkey": Kind("{context}\n\n{input}\nThe pass key is", 6, scores.first_number),
    "number_string": Kind("{context}\n\n{input}\nThe sequence of digits is", 12, scores.first_number),
    "kv_retrieval": Kind("{context}\n\n{input}", 50, scores.a_word),
    "longbook_sum_eng": Kind(_SUMMARY, 1200, scores.rouge_l_sum),
    "longbook_choice_eng": Kind("{context}\n\n{input}" + _OPTIONS + "The right letter is", 40, scores.option),
    "longbook_qa_eng": Kind(_QA, 40, scores.f1),
    "longbook_qa_chn": Kind(_QA, 40, scores.f1_of_characters),
    "longdialogue_qa_eng": Kind("{context}\n\nThe name that $$MASK$$ stands for is", 40, scores.a_name),
    "math_find": Kind("{context}\n\n{input}", 3, scores.first_value),
    "math_calc": Kind("{context}\n\nThe value after each operation: [", 30000, scores.first_values),
    "code_run": Kind("{context}\n\n{input}\nThe value is", 5, scores.last_integer),
    "code_debug": Kind(
        "{context}\n\nOne of these functions has an error that was put in on purpose:"
        + _OPTIONS
        + "The right letter is",
        5,
        scores.faulty_function,
    ),
}
# by the first word of the name: niah_single_1
_RULER = {
    "niah": Kind("{input}{answer_prefix}", 128, scores.share_found),
    "vt": Kind("{input}{answer_prefix}", 30, scores.share_found),
    "cwe": Kind("{input}{answer_prefix}", 120, scores.share_found),
    "fwe": Kind("{input}{answer_prefix}", 50, scores.share_found),
    "qa": Kind("{input}{answer_prefix}", 32, scores.any_found),
}


@dataclass(frozen=True)
class Row:
    """A line of a file.

    Attributes
    ----------
    task : str
        Benchmark and data set, such as ``longbench hotpotqa``.
    file : str
        Its name.
    number : int
        Of the line, from 0.
    digest : str
        Of the line and its prompt.
    prompt : str
    answers : tuple of str
        What is expected.
    kind : Kind
    """

    task: str
    file: str
    number: int
    digest: str
    prompt: str
    answers: tuple[str, ...]
    kind: Kind

    def sample(self, llm: Llama, n_ctx: int) -> Sample:
        """The prompt, without what is too much for the context in its middle, as LongBench does it.

        An answer has at most a quarter of the context.
        """
        n_answer = min(self.kind.n_answer, n_ctx // 4)
        tokens = llm.tokenize(self.prompt)
        half = (n_ctx - n_answer) // 2
        kept = tokens if len(tokens) <= 2 * half else tokens[:half] + tokens[-half:]
        question = Question([], self.answers, self.kind.score, n_answer)
        return Sample(kept, [question], len(tokens) - len(kept))


def load_rows(path: Path, prompts: Mapping[str, str]) -> list[Row]:
    """The lines of a file of LongBench (v1 or E), InfiniteBench or RULER, which are told by their keys.

    The data set is what a line of LongBench says, the name of a file of InfiniteBench, and that of the folder
    of RULER's `validation.jsonl`.

    Parameters
    ----------
    path : pathlib.Path
    prompts : mapping
        Prompts by data set instead of our own, with the keys of a line in braces: LongBench's
        config/dataset2prompt.json.

    Raises
    ------
    OSError, ValueError
        When the file cannot be read, or is of no such benchmark; the line is named.
    RuntimeError
        When a package that scores its answers is not installed.
    """
    rows = []
    lines = [line for line in read_text_file(path).split("\n") if line.strip()]
    for number, text in enumerate(lines):
        try:
            rows.append(_row(path, number, text, prompts))
        except (ValueError, LookupError, TypeError, AttributeError) as err:
            reason = f"it has no {err}" if isinstance(err, KeyError) else str(err)
            raise ValueError(f"{path}, line {number + 1}, cannot be used: {reason}") from None
    return rows


def load_prompts(path: Path) -> dict[str, str]:
    """Prompts by data set, of a JSON file.

    Raises
    ------
    OSError, ValueError
        When it cannot be read, or has something else.
    """
    try:
        prompts = json.loads(read_text_file(path))
    except json.JSONDecodeError as err:
        raise ValueError(f"prompts = {path} is not JSON: {err}") from None
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise ValueError(f"prompts = {path} has no object of prompts by data set, as dataset2prompt.json has")
    return prompts


def _row(path: Path, number: int, text: str, prompts: Mapping[str, str]) -> Row:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as err:
        raise ValueError(f"it is not JSON ({err.msg})") from None
    if "outputs" in line:
        benchmark, known, answers = "ruler", _RULER, line["outputs"]
        name = path.stem if path.stem.split("_")[0] in known else path.resolve().parent.name
        line.setdefault("answer_prefix", "")
    elif "answers" in line:
        benchmark, known = "longbench", _LONGBENCH
        name, answers = line["dataset"].removesuffix("_e"), line["answers"]
    elif "answer" in line:
        benchmark, known, name, answers = "infinitebench", _INFINITEBENCH, path.stem, line["answer"]
    else:
        raise ValueError("it needs a key answers (LongBench), answer (InfiniteBench) or outputs (RULER)")
    kind = known.get(name.split("_")[0] if known is _RULER else name)
    if kind is None:
        raise ValueError(f"{benchmark} has no data set {name!r}: use {', '.join(known)}")
    if name in ("trec", "lsht"):
        kind = replace(kind, score=scores.of_first_line(scores.of_class(line["all_classes"])))
    answers = _texts(answers)
    if name in ("longbook_choice_eng", "code_debug") and len(answers) == 1:
        answers += ("ABCD"[line["options"].index(answers[0])],)
    if not answers:
        raise ValueError("it expects no answer")
    kind.score("", answers)  # what is missing for it is missed before anything is run
    prompt = prompts.get(name, kind.prompt).format(**line)
    digest = hashlib.sha256(f"{text}\n{prompt}".encode()).hexdigest()[:16]
    return Row(f"{benchmark} {name}", path.name, number, digest, prompt, answers, kind)


def _texts(value: Any) -> tuple[str, ...]:
    """What is expected as texts: some are numbers, or lists in a list."""
    return (
        tuple(text for item in value for text in _texts(item)) if isinstance(value, list) else (str(value),)
    )
