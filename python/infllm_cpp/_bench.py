"""`infllm bench`: speed and memory of the method and of plain llama.cpp, in turns."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from . import _terminal as term
from ._options import RunOptions
from .evaluation.prose import load_prose
from .llama import Llama

_N_EXTRA = 128  # tokens of room for what is decoded


@dataclass
class _Side:
    """One way to keep the context, and what was measured at the current length."""

    name: str
    llm: Llama
    n_max: int
    """Longest context that it is run at, tokens."""
    seconds: float = 0.0  # of prefill, so far
    decode: list[float] = field(default_factory=list)  # tok/s


def run_bench(
    options: RunOptions,
    lengths: Sequence[int],
    n_decode: int,
    repeats: int,
    kv_on_cpu: bool,
    plain_up_to: int | None,
    text: Path | None,
    output: Path | None,
    picture: Path | None,
) -> None:
    """Measure, print a table, write JSON lines and a picture.

    Parameters
    ----------
    options : RunOptions
        Model, memory, threads, devices; ``n_ctx`` follows from `lengths`.
    lengths : sequence of int
        Tokens of context at which decoding is measured.
    n_decode, repeats : int
        Tokens decoded greedily at each length, and how often, in turns.
    kv_on_cpu : bool
        Measure plain llama.cpp with its K and V in host memory (``--no-kv-offload``) too.
    plain_up_to : int or None
        Longest context to run plain llama.cpp at, tokens. Beyond it its time per decoded token follows from
        a line through what was measured. ``None``: run it at all.
    """
    for name, value in (("decode", n_decode), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} = {value} is out of range: use a value from 1")
    lengths = sorted(lengths)
    of_plain = [length for length in lengths if plain_up_to is None or length <= plain_up_to]
    if len(of_plain) < min(2, len(lengths)):
        raise ValueError(
            f"plain_up_to = {plain_up_to} leaves {len(of_plain)} of the lengths {lengths}: "
            "at least two are needed for a line"
        )
    options.refuse_n_ctx("--lengths")
    path, config = options.path(), options.config()
    head = {
        "date": str(date.today()),
        "model": path.name,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "threads": options.n_threads,
    }

    sides: list[_Side] = []

    def add(name: str, n_max: int, **kwargs: Any) -> None:
        kwargs = {**options.llama_options(), "n_ctx": n_max + _N_EXTRA + n_decode, **kwargs}
        sides.append(_Side(name, Llama(path, **kwargs), n_max))

    rows = []
    try:
        add("plain llama.cpp", of_plain[-1], infllm=None)
        if kv_on_cpu:
            add("plain, K and V on the CPU", of_plain[-1], infllm=None, offload_kqv=False)
        if config is not None:
            add("InfLLM memory", lengths[-1], infllm=config)
        for row in _measure(sides, lengths, n_decode, repeats, load_prose(text)):
            rows.append(row)
            if output is not None:
                with output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**head, **row}) + "\n")
    finally:
        for side in sides:
            side.llm.close()

    if output is not None:
        term.note(f"results: {output}")
    lines = _add_fits(rows, lengths)
    out = term.results_console()
    out.print(_table(rows))
    for line in lines:
        out.print(line, markup=False)
    if picture is not None:
        _plot(rows, picture)
        term.note(f"picture: {picture}")


def _measure(
    all_sides: Sequence[_Side], lengths: Sequence[int], n_decode: int, repeats: int, prose: str
) -> Iterator[dict[str, Any]]:
    # a token is a few characters: enough text for the longest context, over and over
    tokens = all_sides[0].llm.tokenize(prose[: 8 * lengths[-1]])
    tokens = (tokens * (lengths[-1] // len(tokens) + 1))[: lengths[-1]]

    for length in lengths:
        sides = [side for side in all_sides if length <= side.n_max]
        for side in sides:
            with term.prefill_progress(f"{side.name}, to {length:,}") as progress:
                begin = time.perf_counter()
                side.llm.eval(tokens[side.llm.n_tokens : length], progress=progress.update)
                side.seconds += time.perf_counter() - begin
            side.decode = []
            if side.llm.infllm is not None:
                side.llm.reset_stats()
        for i in range(repeats):
            for side in sides if i % 2 == 0 else reversed(sides):
                side.decode.append(_decode(side.llm, n_decode))
                side.llm.truncate(length - 1)
                side.llm.eval(tokens[length - 1 : length])
        for side in sides:
            stats = side.llm.stats()
            yield {
                "memory": side.name,
                "n_tokens": length,
                "prefill_tok_s": length / side.seconds,
                "decode_tok_s": statistics.median(side.decode),
                "bytes_resident": stats.bytes_resident + stats.bytes_repr
                if stats
                else length * side.llm.kv_bytes_per_token(),
                "bytes_store": stats.bytes_store if stats else 0,
                "page_ins_per_token": stats.n_page_in / (repeats * (n_decode + 1)) if stats else 0.0,
                "peak_process_bytes": _peak_bytes(),
            }


def _add_fits(rows: list[dict[str, Any]], lengths: Sequence[int]) -> list[str]:
    """Add rows for contexts at which plain llama.cpp was not run, and say where they come from.

    Attention costs the same for every token of context, so the time of a decoded token grows along a line.
    """
    lines = []
    for name in dict.fromkeys(row["memory"] for row in rows):
        of = [row for row in rows if row["memory"] == name]
        missing = [n for n in lengths if n > of[-1]["n_tokens"]]
        if not missing:
            continue
        n_tokens = np.array([row["n_tokens"] for row in of], dtype=np.float64)
        seconds = 1 / np.array([row["decode_tok_s"] for row in of])
        slope, start = np.polyfit(n_tokens, seconds, 1)
        off = np.abs(start + slope * n_tokens - seconds) / seconds
        measured = ", ".join(f"{row['n_tokens']:,}" for row in of)
        lines.append(
            f"* {name}: {1e3 * start:.1f} ms + {1e6 * slope:.2f} µs per token of context, "
            f"fitted to {measured} (off by {100 * off.max():.1f} % at most)"
        )
        per_token = of[-1]["bytes_resident"] / of[-1]["n_tokens"]
        rows += [
            {
                "memory": f"{name} *",
                "n_tokens": n,
                "decode_tok_s": float(1 / (start + slope * n)),
                "bytes_resident": n * per_token,
                "bytes_store": 0,
                "page_ins_per_token": 0.0,
            }
            for n in missing
        ]
    return lines


def _decode(llm: Llama, n: int) -> float:
    """tok/s of greedy decoding."""
    begin = time.perf_counter()
    for _ in range(n):
        llm.eval([int(np.argmax(llm.logits))])
    return n / (time.perf_counter() - begin)


def _peak_bytes() -> int:
    """Most physical memory that the process, with all contexts in it, has had so far; 0 where unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table()
    names = (
        "tokens",
        "",
        "prefill, tok/s",
        "decode, tok/s",
        "of plain",
        "resident",
        "store",
        "page-ins/token",
    )
    for i, name in enumerate(names):
        table.add_column(name, justify="left" if i == 1 else "right")
    for row in sorted(rows, key=lambda row: (row["n_tokens"], "prefill_tok_s" in row)):
        plain = next(
            r for r in rows if r["n_tokens"] == row["n_tokens"] and r["memory"].startswith("plain llama.cpp")
        )
        table.add_row(
            f"{row['n_tokens']:,}",
            row["memory"],
            f"{row['prefill_tok_s']:.1f}" if "prefill_tok_s" in row else "",
            f"{row['decode_tok_s']:.1f}",
            f"{row['decode_tok_s'] / plain['decode_tok_s']:.2f} x",
            term.format_bytes(row["bytes_resident"]),
            term.format_bytes(row["bytes_store"]),
            f"{row['page_ins_per_token']:.1f}",
        )
    peak = max(row.get("peak_process_bytes", 0) for row in rows)
    table.caption = f"peak memory of the process, all contexts: {term.format_bytes(peak)}"
    return table


def _plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError(
            'pictures need matplotlib: install it with pip install "infllm-cpp[plot]"'
        ) from None
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(row["memory"] for row in rows):
        of = [row for row in rows if row["memory"] == name]
        axes.plot([r["n_tokens"] for r in of], [r["decode_tok_s"] for r in of], marker="o", label=name)
    axes.set(xlabel="context, tokens", ylabel="decode, tok/s", xscale="log", yscale="log")
    axes.legend()
    figure.savefig(path)
