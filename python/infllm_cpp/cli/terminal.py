"""What the commands print: answers on stdout, everything else on stderr, plain when piped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from .._format import format_bytes
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
    console.print(text, style="dim", markup=False)


def error(message: object) -> None:
    """Print an error on one line."""
    console.print(f"error: {' '.join(str(message).split())}", style="red", markup=False)


def answer(text: str) -> None:
    """Print a piece of an answer as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


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


def format_memory(llm: Llama) -> str:
    """Attention memory in one line; empty for plain llama.cpp."""
    stats = llm.stats()
    if stats is None:
        return ""
    return f"resident {format_bytes(stats.bytes_resident)}, store {format_bytes(stats.bytes_store)}"
