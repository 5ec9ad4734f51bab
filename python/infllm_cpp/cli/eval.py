"""`infllm eval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..config import CHOICES, SIZES, InfLLMConfig
from ..evaluation import report
from ..evaluation.methods import METHODS
from ..evaluation.runner import Plan, run
from ..evaluation.tasks import RETRIEVAL, TASKS
from . import terminal as term
from .options import RunOptions

_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("{task.percentage:.0f} %"),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
)


class EvalProgress:
    """A bar with the time left on a terminal, else a line for every new label."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._label = ""

    def update(self, label: str, n_done: int, n_total: int) -> None:
        """To be called with what is being done, the tokens done, and all."""
        if term.console.is_terminal:
            if self._bar is None:
                self._bar = Progress(*_COLUMNS, console=term.console, transient=True)
                self._task = self._bar.add_task(label, total=n_total)
                self._bar.start()
            self._bar.update(self._task, description=label, completed=n_done)
        elif label != self._label:
            self._label = label
            term.note(f"{label}: {n_done:,} of {n_total:,} tokens are done")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()


def parse_list(name: str, text: str, known: Sequence[str]) -> list[str]:
    """Names separated by commas; ValueError when one is unknown."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    for value in names:
        if value not in known:
            raise ValueError(f"{name} = {value!r} is unknown: use {', '.join(known)}")
    return names


def parse_numbers(name: str, text: str) -> list[int]:
    """Positive numbers separated by commas; ValueError otherwise."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if any(n <= 0 for n in numbers):
        raise ValueError(f"{name} = {text!r} is not a list of positive numbers, such as 4096,8192")
    return numbers


def parse_sweep(base: InfLLMConfig, texts: Sequence[str]) -> list[InfLLMConfig]:
    """All combinations of ``name=value,value``; ValueError when a name is unknown."""
    names = [f.name for f in fields(InfLLMConfig)]
    axes: list[list[tuple[str, int | str]]] = []
    for text in texts:
        name, _, values = text.partition("=")
        if name not in names:
            raise ValueError(f"sweep = {text!r} begins with no parameter: use {', '.join(names)}")
        if name in CHOICES:
            axes.append([(name, choice) for choice in parse_list(name, values, CHOICES[name])])
        elif name in SIZES:
            axes.append([(name, size.strip()) for size in values.split(",")])
        else:
            axes.append([(name, n) for n in parse_numbers(f"sweep {name}", values)])
    changes: list[dict[str, Any]] = [dict(combination) for combination in product(*axes)]
    return [replace(base, **change) for change in changes]


def run_eval(
    options: RunOptions,
    tasks: Sequence[str],
    methods: str,
    lengths: str,
    depths: int,
    samples: int | None,
    seed: int,
    sweep: Sequence[str],
    text: Path | None,
    files: Sequence[Path],
    prompts: Path | None,
    output: Path,
    pictures: Path | None,
) -> None:
    """Run tasks, print tables, write pictures."""
    for name, value, least in (("depths", depths, 1), ("samples", samples, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} = {value} is out of range: use a value from {least}")
    base = options.config()
    if base is None:
        raise ValueError("--no-infllm has no use here: choose with --methods full")
    options.refuse_n_ctx("--lengths")
    model_options = options.llama_options()
    del model_options["n_ctx"]
    if list(tasks) == ["all"]:
        tasks = list(RETRIEVAL)
    plan = Plan(
        model=options.path(),
        tasks=parse_list("task", ",".join(tasks), TASKS) or ([] if files else ["passkey"]),
        methods=parse_list("methods", methods, METHODS),
        lengths=parse_numbers("lengths", lengths),
        depths=depths,
        samples=samples,
        seed=seed,
        configs=parse_sweep(base, sweep),
        text=text,
        files=files,
        prompts=prompts,
        options=model_options,
    )
    progress = EvalProgress()
    try:
        results = run(plan, output, progress.update)
    finally:
        progress.close()

    out = term.results_console()
    for table in report.tables(results):
        out.print(table)
    rows = report.configurations(results)
    if len(rows) > 1:
        out.print(report.sweep_table(rows))
        out.print(f"Recommended: {report.recommend(rows)['name']}", markup=False)
    term.note(f"results: {output}")
    if pictures is not None:
        for path in report.plot(results, pictures):
            term.note(f"picture: {path}")
