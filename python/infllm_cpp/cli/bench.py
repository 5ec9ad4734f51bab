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

from .._format import format_bytes
from ..evaluation.prose import load_prose
from ..llama import Llama
from . import terminal as term
from .options import RunOptions

_N_EXTRA = 128  # tokens of room for what is decoded


@dataclass
class _Side:
    """One way to keep the context, and what was measured at the current length."""

    name: str
    llm: Llama
    n_max: int
    """Longest context that it is run at, tokens."""
    stays: bool = False
    """It stays at `n_max`, the shortest context: longer ones are compared with it in turns."""
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
        a line through what was measured. ``None``: run it at all. 0: at none, measure the method alone.
    """
    for name, value in (("decode", n_decode), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} = {value} is out of range: use a value from 1")
    lengths = sorted(lengths)
    of_plain = [length for length in lengths if plain_up_to is None or length <= plain_up_to]
    options.refuse_n_ctx("--lengths")
    path, config = options.path(), options.config()
    if plain_up_to == 0 and config is None:
        raise ValueError("plain_up_to = 0 leaves nothing to measure without the memory (--no-infllm)")
    if plain_up_to == 0 and kv_on_cpu:
        raise ValueError("plain_up_to = 0 excludes --no-kv-offload, which is plain llama.cpp, too")
    if plain_up_to != 0 and len(of_plain) < min(2, len(lengths)):
        raise ValueError(
            f"plain_up_to = {plain_up_to} leaves {len(of_plain)} of the lengths {lengths}: "
            "at least two are needed for a line, or 0 to measure the method alone"
        )
    head = {
        "date": str(date.today()),
        "model": path.name,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "threads": options.n_threads,
    }

    sides: list[_Side] = []

    def add(name: str, n_max: int, stays: bool = False, **kwargs: Any) -> None:
        kwargs = {**options.llama_options(), "n_ctx": n_max + _N_EXTRA + n_decode, **kwargs}
        sides.append(_Side(name, Llama(path, **kwargs), n_max, stays))

    rows = []
    try:
        if of_plain:
            add("plain llama.cpp", of_plain[-1], infllm=None)
        if kv_on_cpu:
            add("plain, K and V on the CPU", of_plain[-1], infllm=None, offload_kqv=False)
        if config is not None:
            add("InfLLM memory", lengths[-1], infllm=config)
            if len(lengths) > 1:
                add("InfLLM memory, the shortest again", lengths[0], stays=True, infllm=config)
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
    lines = _of_shortest(rows, lengths[0]) + _add_fits(rows, lengths)
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
        sides = [side for side in all_sides if side.stays == (length > side.n_max)]
        ends = [min(length, side.n_max) for side in sides]
        for side, end in zip(sides, ends, strict=True):
            if side.llm.n_tokens < end:
                with term.prefill_progress(f"{side.name}, to {end:,}") as progress:
                    begin = time.perf_counter()
                    side.llm.eval(tokens[side.llm.n_tokens : end], progress=progress.update)
                    side.seconds += time.perf_counter() - begin
            side.decode = []
            if side.llm.infllm is not None:
                side.llm.reset_stats()
        for i in range(repeats):
            for side, end in list(zip(sides, ends, strict=True))[:: 1 if i % 2 == 0 else -1]:
                side.decode.append(_decode(side.llm, n_decode))
                side.llm.truncate(end - 1)
                side.llm.eval(tokens[end - 1 : end])
        shortest = [statistics.median(side.decode) for side in sides if side.stays]
        for side in sides:
            if side.stays:
                continue
            stats = side.llm.stats()
            yield {
                "memory": side.name,
                "n_tokens": length,
                "prefill_tok_s": length / side.seconds,
                "decode_tok_s": statistics.median(side.decode),
                **({"decode_shortest_tok_s": shortest[0]} if stats and shortest else {}),
                "bytes_resident": stats.bytes_resident + stats.bytes_repr
                if stats
                else length * side.llm.kv_bytes_per_token(),
                "bytes_store": stats.bytes_store if stats else 0,
                "page_ins_per_token": stats.n_page_in / (repeats * (n_decode + 1)) if stats else 0.0,
                "peak_process_bytes": _peak_bytes(),
            }


def _of_shortest(rows: Sequence[dict[str, Any]], length: int) -> list[str]:
    """How decoding slows down with the context, measured in turns with a context of the shortest length."""
    lines = []
    for row in rows:
        if "decode_shortest_tok_s" in row:
            speed, shortest = row["decode_tok_s"], row["decode_shortest_tok_s"]
            lines.append(
                f"{row['memory']}: at {row['n_tokens']:,} tokens {speed / shortest:.2f} x as fast as at "
                f"{length:,} (in turns with it; {shortest:.1f} tok/s)"
            )
    return lines


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
        at_length = (r for r in rows if r["n_tokens"] == row["n_tokens"])
        plain = next((r for r in at_length if r["memory"].startswith("plain llama.cpp")), None)
        table.add_row(
            f"{row['n_tokens']:,}",
            row["memory"],
            f"{row['prefill_tok_s']:.1f}" if "prefill_tok_s" in row else "",
            f"{row['decode_tok_s']:.1f}",
            f"{row['decode_tok_s'] / plain['decode_tok_s']:.2f} x" if plain else "",
            format_bytes(row["bytes_resident"]),
            format_bytes(row["bytes_store"]),
            f"{row['page_ins_per_token']:.1f}",
        )
    peak = max(row.get("peak_process_bytes", 0) for row in rows)
    table.caption = f"peak memory of the process, all contexts: {format_bytes(peak)}"
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
