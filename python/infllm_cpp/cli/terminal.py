"""What the commands print: answers on stdout, everything else on stderr, plain when piped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from .._format import format_bytes, visible
from ..config import InfLLMStats
from ..llama import Llama
from ..types import Timings

# a prompt below this is over before a bar can be read
_N_TOKENS_PROGRESS = 1024

console = Console(stderr=True, highlight=False, soft_wrap=True)


def results_console() -> Console:
    """For tables on stdout: as wide as they are when piped."""
    return Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 500)


def note(text: str) -> None:
    """Print a remark."""
    console.print(visible(text), style="dim", markup=False)


def thought(text: str) -> None:
    """Print a piece of what a model thinks before it answers, or, if it is empty, the end of that."""
    console.print(visible(text) or "\n", style="dim italic", markup=False, end="")


def error(message: object) -> None:
    """Print an error on one line."""
    _line("error", message, "red")


def warning(message: object) -> None:
    """Print a warning on one line."""
    _line("warning", message, "yellow")


def _line(kind: str, message: object, style: str) -> None:
    console.print(f"{kind}: {visible(' '.join(str(message).split()))}", style=style, markup=False)


def answer(text: str) -> None:
    """Print a piece of an answer as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


class Answer(Protocol):
    """An answer that is printed piece by piece."""

    def push(self, text: str) -> None:
        """Print a piece."""

    def close(self) -> None:
        """Print what is left, and end the line."""


class PlainAnswer:
    """As it is."""

    def __init__(self) -> None:
        self._is_empty = True

    def push(self, text: str) -> None:
        """Print a piece."""
        answer(visible(text) if sys.stdout.isatty() else text)
        self._is_empty = False

    def close(self) -> None:
        """End the line."""
        if not self._is_empty:
            answer("\n")


def begin_answer(markdown: bool) -> Answer:
    """For one answer: as Markdown if stdout is a terminal that can show it, and `markdown`."""
    out = Console()
    if not markdown or not sys.stdout.isatty() or out.is_dumb_terminal or out.options.ascii_only:
        return PlainAnswer()
    from .markdown import MarkdownAnswer  # takes long to load

    return MarkdownAnswer()


class PrefillProgress:
    """How far a prompt is: a bar on a terminal, else a line for every tenth of a long prompt."""

    def __init__(self, label: str, enabled: bool) -> None:
        self._label = label
        self._enabled = enabled
        self._n_tenths = 0
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def update(self, n_done: int, n_total: int) -> None:
        """To be called with the tokens done and in all."""
        if not self._enabled or n_total < _N_TOKENS_PROGRESS:
            return
        if console.is_terminal:
            if self._bar is None:
                self._bar = self._start_bar(n_total)
            self._bar.update(self._task, completed=n_done)
        elif 10 * n_done // n_total > self._n_tenths:
            self._n_tenths = 10 * n_done // n_total
            note(f"{self._label}: {n_done:,} of {n_total:,} tokens")

    def _start_bar(self, n_total: int) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
        bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = bar.add_task(self._label, total=n_total)
        bar.start()
        return bar

    def close(self) -> None:
        """Remove the bar: the answer begins."""
        if self._bar is not None:
            self._bar.stop()
        self._enabled = False


@contextmanager
def prefill_progress(label: str = "reading", enabled: bool = True) -> Iterator[PrefillProgress]:
    """A progress that is removed at the end, whatever happens."""
    progress = PrefillProgress(label, enabled)
    try:
        yield progress
    finally:
        progress.close()


def format_timings(timings: Timings) -> str:
    """Speed of an answer in one line."""
    cached = f" ({timings['cache_n']:,} more were stored)" if timings["cache_n"] else ""
    return (
        f"prefill {timings['prompt_n']:,} tokens{cached}, {timings['prompt_per_second']:.0f} tok/s; "
        f"decode {timings['predicted_n']:,} tokens, {timings['predicted_per_second']:.1f} tok/s"
    )


def format_page_ins(before: InfLLMStats | None, after: InfLLMStats | None) -> str:
    """What was paged between two looks at the counters, in words; empty if no block was selected."""
    if after is None:
        return ""
    n_selected, n_hit, n_page_in = after.n_selected, after.n_hit, after.n_page_in
    if before is not None and before.n_selected <= n_selected:  # else the context is another one
        n_selected -= before.n_selected
        n_hit -= before.n_hit
        n_page_in -= before.n_page_in
    if n_selected == 0:
        return ""
    return f"{n_page_in:,} blocks paged in, hit rate {100 * n_hit / n_selected:.0f} %"


def format_memory(llm: Llama) -> str:
    """Attention memory in one line; empty for plain llama.cpp."""
    stats = llm.stats()
    if stats is None:
        return ""
    return f"resident {format_bytes(stats.bytes_resident)}, store {format_bytes(stats.bytes_store)}"
