"""Run tasks, keep the results as JSON lines, go on where an earlier run stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..config import InfLLMConfig
from ..llama import Llama, ProgressCallback
from ..passkey import is_right
from .logits import Logits, divergence, log_probs, perplexity
from .methods import load_method
from .prose import load_prose
from .tasks import N_ANSWER, OF_FILLER, OF_TEXT, WHOLE, Haystack, Question, fill

Result = dict[str, Any]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What to run.

    `lengths` are tokens of a context, which text, question and answer fill together: those of the training
    length are within it. `depths` is a number of depths, evenly spaced from 0 to 1, seen at their middles.
    """

    model: Path
    tasks: Sequence[str]
    methods: Sequence[str]
    lengths: Sequence[int]
    depths: int = 5
    samples: int = 1
    seed: int = 0
    configs: Sequence[InfLLMConfig] = (InfLLMConfig(),)
    text: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)  # of Llama

    def contexts(self) -> Iterator[tuple[str, InfLLMConfig, int]]:
        """Method, configuration and length of every context; plain llama.cpp has no configuration."""
        for method, config, length in product(self.methods, self.configs, self.lengths):
            if not method.startswith("full") or config == self.configs[0]:
                yield method, config, length

    def samples_of(self, task: str) -> list[tuple[float, int]]:
        """Depth and seed of every sample, deepest first: the next text begins with what is stored."""
        if task in OF_TEXT:
            return [(0.0, self.seed)]
        n_depth = 1 if task in WHOLE else self.depths
        n_text = 1 if task == "kv-retrieval" else n_depth  # there the depth says only what is asked
        return [
            ((i + 0.5) / n_depth, self.seed + sample * n_text + i % n_text)
            for sample in range(self.samples)
            for i in reversed(range(n_depth))
        ]


def key_of(result: Result) -> str:
    """What makes two results the same measurement."""
    names = ("model", "task", "method", "config", "length", "end", "depth", "seed")
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
        ``task, method, config, length, depth, seed``, and ``n_right, n_asked, answers`` for retrieval, or for
        perplexity ``end`` (where the text ends in the prose, tokens), ``buckets`` (``[begin, end, mean
        negative log likelihood]``) and ``last`` (that of the last `logits.BUCKET` tokens), for divergence
        what `divergence()` returns; ``seconds``, ``decode_tok_s``, ``bytes_resident``, ``bytes_store``.
    """
    wanted = [
        ((method, config, length), task, depth, seed)
        for method, config, length in plan.contexts()
        for task in plan.tasks
        for depth, seed in plan.samples_of(task)
    ]

    def head(context: tuple[str, InfLLMConfig, int], task: str, depth: float, seed: int) -> Result:
        method, config, length = context
        used = {} if method.startswith("full") else config._changes()
        return {
            "model": plan.model.name,
            "task": task,
            "method": method,
            "config": used,
            "length": length,
            # texts of every length end with the same passage: it has more or less before it
            **({"end": max(plan.lengths)} if task in OF_TEXT else {}),
            "depth": depth,
            "seed": seed,
        }

    done = {key_of(result): result for result in read_results(output)}
    todo = [item for item in wanted if key_of(head(*item)) not in done]
    cut_off = output.exists() and output.read_bytes()[-1:] not in (b"", b"\n")
    n_total, n_done = sum(item[0][2] for item in todo), 0
    prose = load_prose(plan.text) if any(task not in OF_FILLER for _, task, _, _ in todo) else ""

    llm: Llama | None = None
    haystack: Haystack | None = None
    exact: dict[int, Logits] = {}  # of full attention, by length
    current = None
    try:
        for context, task, depth, seed in todo:
            if context != current:
                if llm is not None:
                    llm.close()
                method, config, length = context
                llm = load_method(method, plan.model, length, config, **plan.options)
                haystack = Haystack(llm.tokenize, prose)
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
            result = head(context, task, depth, seed)
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
    return [done[key_of(head(*item))] for item in wanted]


def ask(llm: Llama, tokens: list[int], questions: Sequence[Question], progress: ProgressCallback) -> Result:
    """Answer every question about the same text, greedily, in four tokens more than are expected."""
    answers, speeds = [], []
    for question in questions:
        expected = llm.tokenize(" " + question.answer, add_bos=False)
        completion = llm.create_completion(
            [*tokens, *question.tokens],
            max_tokens=min(len(expected) + 4, N_ANSWER),
            temperature=0,
            progress=progress,
        )
        answers.append(completion["choices"][0]["text"])
        speeds.append(completion["timings"]["predicted_per_second"])
    right = [is_right(answer, question.answer) for answer, question in zip(answers, questions, strict=True)]
    return {
        "n_right": sum(right),
        "n_asked": len(right),
        "answers": answers,
        "expected": [question.answer for question in questions],
        "decode_tok_s": float(np.median(speeds)),
    }
