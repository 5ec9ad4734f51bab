"""Run tasks, keep the results as JSON lines, go on where an earlier run stopped."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._model_changes import file_id
from ..config import InfLLMConfig
from ..llama import Llama, ProgressCallback
from .files import Row, load_prompts, load_rows
from .haystack import N_ANSWER, Haystack, Question
from .logits import Logits, divergence, log_probs, perplexity
from .methods import load_method, used_by
from .prose import load_prose
from .tasks import OF_CODE, OF_FILLER, OF_TEXT, WHOLE, fill

Result = dict[str, Any]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What to run.

    `lengths` are tokens of a context, which text, question and answer fill together: those of the training
    length are within it. `depths` is a number of depths, evenly spaced from 0 to 1, seen at their middles.
    `samples` are texts for each length and depth, 1 by default, and lines of each of the `files`, all by
    default; `seed` decides the texts, and is the first line. `prompts` is a file for `load_prompts`.
    """

    model: Path
    tasks: Sequence[str]
    methods: Sequence[str]
    lengths: Sequence[int]
    depths: int = 5
    samples: int | None = None
    seed: int = 0
    configs: Sequence[InfLLMConfig] = (InfLLMConfig(),)
    text: Path | None = None
    files: Sequence[Path] = ()
    prompts: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)  # of Llama

    def changes(self) -> dict[str, Any]:
        """Those of `options` that change the numbers and are not their defaults: not threads, or devices."""
        defaults: dict[str, Any] = {"n_batch": 512, "n_ubatch": None, "type_k": "f16", "type_v": "f16"}
        given = {name: self.options.get(name, default) for name, default in defaults.items()}
        return {name: value for name, value in given.items() if value not in (None, defaults[name])}

    def contexts(self) -> Iterator[tuple[str, InfLLMConfig, int]]:
        """Method, what it uses of a configuration, and length of every context, each once."""
        wanted = product(self.methods, self.configs, self.lengths)
        yield from dict.fromkeys(
            (method, used_by(method, config), length) for method, config, length in wanted
        )

    def samples_of(self, task: str) -> list[tuple[float, int]]:
        """Depth and seed of every sample, deepest first: the next text begins with what is stored."""
        if task in OF_TEXT:
            return [(0.0, self.seed)]
        n_depth = 1 if task in WHOLE else self.depths
        n_text = 1 if task == "kv-retrieval" else n_depth  # there the depth says only what is asked
        return [
            ((i + 0.5) / n_depth, self.seed + sample * n_text + i % n_text)
            for sample in range(self.samples or 1)
            for i in reversed(range(n_depth))
        ]

    def rows(self) -> list[Row]:
        """The lines of the files."""
        prompts = load_prompts(self.prompts) if self.prompts else {}
        out = []
        for path in self.files:
            rows = load_rows(path, prompts)
            if self.seed >= len(rows):
                raise ValueError(f"seed = {self.seed} is no line of {path}: it has {len(rows)}, from 0")
            out += rows[self.seed :][: self.samples]
        return out


class Item(NamedTuple):
    """A measurement: a task in a context, or a line of a file."""

    context: tuple[str, InfLLMConfig, int]
    task: str
    depth: float
    seed: int
    row: Row | None = None


def key_of(result: Result) -> str:
    """What makes two results the same measurement."""
    where = ("end", "python", "text", "file", "digest", "depth", "seed")
    names = ("model", "model_id", "options", "task", "method", "config", "length", *where)
    return json.dumps([result.get(name) for name in names], sort_keys=True)


def read_results(path: Path) -> list[Result]:
    """The results in a file, the last of each measurement; a line that is none, or cut off, is left out."""
    results = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                result = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(result, dict):
                results[key_of(result)] = result
    return list(results.values())


def run(plan: Plan, output: Path, progress: Progress | None = None) -> list[Result]:
    """Run what `output` does not have yet, and return all results of the plan.

    Parameters
    ----------
    plan : Plan
    output : pathlib.Path
        JSON lines, appended to as soon as a result is there.
    progress : callable or None
        ``progress(label, n_done, n_total)``, tokens of texts; those that are read again are counted too.

    Returns
    -------
    list of dict
        ``task, method, config, length, depth, seed``, with ``model_id`` and ``text`` (digests of the model's
        and of the prose's file) and ``options`` (`Plan.changes()`), and for retrieval what `ask()` returns,
        with ``python`` (its version) where the text is Python's, and ``file``, ``digest`` and ``n_cut``
        (tokens left out in the middle) where it is a line of a file; for perplexity ``end`` (where the text
        ends in the prose, tokens), ``buckets`` (``[begin, end, mean negative log likelihood]``) and ``last``
        (that of the last `logits.BUCKET` tokens), for divergence what `divergence()` returns; ``seconds``,
        ``decode_tok_s``, ``bytes_resident``, ``bytes_store``.
    """
    rows = plan.rows()
    wanted = []
    for context in plan.contexts():
        wanted += [Item(context, task, *sample) for task in plan.tasks for sample in plan.samples_of(task)]
        wanted += [Item(context, row.task, 0.0, row.number, row) for row in rows]

    model_id = file_id(plan.model)[:16]
    options = plan.changes()
    text_id = hashlib.sha256(plan.text.read_bytes()).hexdigest()[:16] if plan.text else None

    def head(item: Item) -> Result:
        (method, config, length), task, depth, seed, row = item
        return {
            "model": plan.model.name,
            "model_id": model_id,
            "options": options,
            "task": task,
            "method": method,
            "config": config._changes(),
            "length": length,
            # texts of every length end with the same passage: it has more or less before it
            **({"end": max(plan.lengths)} if task in OF_TEXT else {}),
            **({"text": text_id} if text_id and not row and task not in OF_FILLER else {}),
            **({"python": platform.python_version()} if task in OF_CODE else {}),
            **({"file": row.file, "digest": row.digest} if row else {}),
            "depth": depth,
            "seed": seed,
        }

    done = {key_of(result): result for result in read_results(output)}
    todo = [item for item in wanted if key_of(head(item)) not in done]
    cut_off = output.exists() and output.read_bytes()[-1:] not in (b"", b"\n")
    n_total, n_done = sum(item.context[2] for item in todo), 0
    of_prose = any(item.row is None and item.task not in OF_FILLER for item in todo)
    prose = load_prose(plan.text) if of_prose else ""

    llm: Llama | None = None
    haystack: Haystack | None = None
    exact: dict[int, Logits] = {}  # of full attention, by length
    current = None
    try:
        for item in todo:
            context, task, depth, seed, row = item
            if context != current:
                if llm is not None:
                    llm.close()
                method, config, length = context
                llm = load_method(method, plan.model, length, config, **plan.options)
                haystack = Haystack(llm, prose)
                current = context
            assert llm is not None and haystack is not None
            length = context[2]
            label = f"{task}, {context[0]}, {length:,} tokens"

            def update(
                n: int, n_all: int, label: str = label, begin: int = n_done, length: int = length
            ) -> None:
                if progress is not None:
                    progress(label, begin + round(length * n / max(1, n_all)), n_total)

            update(0, 1)
            begin = time.perf_counter()
            result = head(item)
            if task in OF_TEXT:
                text = [token for s in haystack.cut(result["end"] - 1) for token in s]
                tokens = haystack.begin + text[-(length - 1) :]
                if task == "divergence":
                    if length not in exact:
                        with load_method("full", plan.model, length, context[1], **plan.options) as full:
                            exact[length] = log_probs(full, tokens, update)
                    result.update(divergence(llm, exact[length], tokens, update))
                else:
                    result["buckets"], result["last"] = perplexity(llm, tokens, update)
            else:
                if row:
                    sample = row.sample(llm, length)
                    result["n_cut"] = sample.n_cut
                else:
                    sample = fill(task, haystack, length, depth, seed)
                result.update(ask(llm, sample.tokens, sample.questions, update))
            stats = llm.stats()
            result["seconds"] = time.perf_counter() - begin
            result["bytes_resident"] = stats.bytes_resident if stats else length * llm.kv_bytes_per_token()
            result["bytes_store"] = stats.bytes_store if stats else 0
            n_done += length
            update(0, 1, begin=n_done)
            with output.open("a", encoding="utf-8") as file:
                # a line that was cut off ends here
                file.write(("\n" if cut_off else "") + json.dumps(result) + "\n")
            cut_off = False
            done[key_of(result)] = result
    finally:
        if llm is not None:
            llm.close()
    return [done[key_of(head(item))] for item in wanted]


def ask(llm: Llama, tokens: list[int], questions: Sequence[Question], progress: ProgressCallback) -> Result:
    """Answer every question about the same text, greedily.

    Returns
    -------
    dict
        ``n_asked``; ``n_right``, the sum of ``scores``, each from 0 to 1; ``answers``; what was ``expected``,
        texts, or lists of texts where there are several; ``decode_tok_s``, the median.
    """
    answers, speeds = [], []
    for question in questions:
        expected = llm.tokenize(" " + question.answers[0], add_bos=False)
        completion = llm.create_completion(
            [*tokens, *question.tokens],
            max_tokens=question.n_answer or min(len(expected) + 4, N_ANSWER),
            temperature=0,
            progress=progress,
        )
        answers.append(completion["choices"][0]["text"])
        speeds.append(completion["timings"]["predicted_per_second"])
    scores = [
        question.score(answer, question.answers) for answer, question in zip(answers, questions, strict=True)
    ]
    return {
        "n_right": sum(scores),
        "n_asked": len(scores),
        "scores": scores,
        "answers": answers,
        "expected": [q.answers[0] if len(q.answers) == 1 else list(q.answers) for q in questions],
        "decode_tok_s": float(np.median(speeds)),
    }
