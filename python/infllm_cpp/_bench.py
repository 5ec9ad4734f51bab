"""`infllm bench`: speed and memory of the method and of plain llama.cpp, in turns."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
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
    seconds: float = 0.0  # of prefill, so far
    decode: list[float] = field(default_factory=list)  # tok/s


def run_bench(
    options: RunOptions,
    lengths: Sequence[int],
    n_decode: int,
    repeats: int,
    kv_on_cpu: bool,
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
    """
    for name, value in (("decode", n_decode), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} = {value} is out of range: use a value from 1")
    lengths = sorted(lengths)
    path, config = options.path(), options.config()
    kwargs = {**options.llama_options(), "n_ctx": lengths[-1] + _N_EXTRA + n_decode}

    sides = [_Side("plain llama.cpp", Llama(path, infllm=None, **kwargs))]
    try:
        if kv_on_cpu:
            plain = Llama(path, infllm=None, offload_kqv=False, **kwargs)
            sides.append(_Side("plain, K and V on the CPU", plain))
        if config is not None:
            sides.append(_Side("InfLLM memory", Llama(path, infllm=config, **kwargs)))
        rows = list(_measure(sides, lengths, n_decode, repeats, load_prose(text)))
    finally:
        for side in sides:
            side.llm.close()

    head = {
        "date": str(date.today()),
        "model": path.name,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "threads": options.n_threads,
    }
    if output is not None:
        with output.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({**head, **row}) + "\n" for row in rows)
        term.note(f"results: {output}")
    term.results_console().print(_table(rows))
    if picture is not None:
        _plot(rows, picture)
        term.note(f"picture: {picture}")


def _measure(
    sides: Sequence[_Side], lengths: Sequence[int], n_decode: int, repeats: int, prose: str
) -> list[dict[str, Any]]:
    # a token is a few characters: enough text for the longest context, over and over
    tokens = sides[0].llm.tokenize(prose[: 8 * lengths[-1]])
    tokens = (tokens * (lengths[-1] // len(tokens) + 1))[: lengths[-1]]

    rows = []
    for length in lengths:
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
            rows.append(
                {
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
            )
    return rows


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
    for row in rows:
        plain = next(r for r in rows if r["n_tokens"] == row["n_tokens"])
        table.add_row(
            f"{row['n_tokens']:,}",
            row["memory"],
            f"{row['prefill_tok_s']:.1f}",
            f"{row['decode_tok_s']:.1f}",
            f"{row['decode_tok_s'] / plain['decode_tok_s']:.2f} x",
            term.format_bytes(row["bytes_resident"]),
            term.format_bytes(row["bytes_store"]),
            f"{row['page_ins_per_token']:.1f}",
        )
    table.caption = (
        f"peak memory of the process, all contexts: {term.format_bytes(rows[-1]['peak_process_bytes'])}"
    )
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
