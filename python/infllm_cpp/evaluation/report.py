"""Results as tables, as pictures, and as a recommended configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Column, Table

from .._format import format_bytes
from .logits import BUCKET, mean_perplexity
from .runner import Result
from .tasks import OF_TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def name_of(result: Result) -> str:
    """Method, and what its configuration changes: ``infllm topk=8``."""
    return " ".join([result["method"], *(f"{k}={v}" for k, v in result["config"].items())])


def accuracy(results: Sequence[Result]) -> float:
    """Right answers, which can be parts of one, of all that were asked; NaN if none was."""
    n_asked = sum(r["n_asked"] for r in results)
    return sum(r["n_right"] for r in results) / n_asked if n_asked else math.nan


def _share(results: Sequence[Result]) -> str:
    n_right, n_asked = (sum(r[name] for r in results) for name in ("n_right", "n_asked"))
    return f"{100 * n_right / n_asked:.0f} % ({n_right:.4g}/{n_asked})" if n_asked else ""


def _unique(values: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _table(columns: Sequence[str]) -> Table:
    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < 2 else "right")
    return table


def side_by_side(results: Sequence[Result]) -> Table:
    """A row for each task, a column for each method: all of one length.

    Below are the mean, in which every task counts alike, and what is resident.
    """
    by_name = {name: [r for r in results if name_of(r) == name] for name in map(name_of, results)}
    tasks = _unique([r["task"] for r in results])
    table = Table(f"{results[0]['length']:,} tokens", *(Column(name, justify="right") for name in by_name))
    for task in tasks:
        table.add_row(task, *(_share([r for r in of if r["task"] == task]) for of in by_name.values()))
    table.add_section()
    means = [np.mean([accuracy([r for r in of if r["task"] == t]) for t in tasks]) for of in by_name.values()]
    table.add_row("mean of the tasks", *(f"{100 * mean:.1f} %" for mean in means))
    resident = (max(r["bytes_resident"] for r in of) for of in by_name.values())
    table.add_row("resident", *map(format_bytes, resident))
    return table


def tables(results: Sequence[Result]) -> list[Table]:
    """Accuracy by task, method and length; perplexity by position; what each method takes."""
    out = []
    retrieval = [r for r in results if r["task"] not in OF_TEXT]
    if retrieval:
        lengths = sorted({r["length"] for r in retrieval})
        table = _table(["task", "method", *(f"{n:,}" for n in lengths)])
        for task in _unique([r["task"] for r in retrieval]):
            for name in _unique([name_of(r) for r in retrieval]):
                of = [r for r in retrieval if r["task"] == task and name_of(r) == name]
                cells = [_share([r for r in of if r["length"] == length]) for length in lengths]
                if any(cells):
                    table.add_row(task, name, *cells)
        out.append(table)
        if min(len({r["task"] for r in retrieval}), len({name_of(r) for r in retrieval})) > 1:
            out += [side_by_side([r for r in retrieval if r["length"] == n]) for n in lengths]

    texts = [r for r in results if r["task"] == "perplexity"]
    for length in sorted({r["length"] for r in texts}):
        chosen = [r for r in texts if r["length"] == length]
        ends = [end for _, end, _ in max((r["buckets"] for r in chosen), key=len)]
        table = _table([f"perplexity, {length:,}", "method", *(f"to {end:,}" for end in ends), "all"])
        for r in chosen:
            cells = [f"{math.exp(loss):.2f}" for _, _, loss in r["buckets"]]
            table.add_row("", name_of(r), *cells, f"{mean_perplexity(r['buckets']):.2f}")
        out.append(table)

    lengths = sorted({r["length"] for r in texts})
    if len(lengths) > 1:  # all texts end with the same tokens
        table = _table([f"perplexity of the last {BUCKET:,}", "method", *(f"{n:,}" for n in lengths)])
        for name in _unique([name_of(r) for r in texts]):
            last = {r["length"]: r["last"] for r in texts if name_of(r) == name}
            table.add_row("", name, *(f"{math.exp(last[n]):.2f}" if n in last else "" for n in lengths))
        out.append(table)

    texts = [r for r in results if r["task"] == "divergence"]
    if texts:
        columns = ["length", "mean", "median", "99 %", "same first token"]
        table = _table([f"KL divergence to full, last {BUCKET:,}", "method", *columns])
        for r in texts:
            kl = (f"{r[name]:.4f}" for name in ("kl_mean", "kl_median", "kl_99"))
            table.add_row("", name_of(r), f"{r['length']:,}", *kl, f"{100 * r['same_token']:.1f} %")
        out.append(table)

    table = _table(["method", "length", "resident", "store", "decode, tok/s", "seconds"])
    for name in _unique([name_of(r) for r in results]):
        for length in sorted({r["length"] for r in results}):
            of = [r for r in results if name_of(r) == name and r["length"] == length]
            if of:
                speeds = [r["decode_tok_s"] for r in of if "decode_tok_s" in r]
                table.add_row(
                    name,
                    f"{length:,}",
                    format_bytes(max(r["bytes_resident"] for r in of)),
                    format_bytes(max(r["bytes_store"] for r in of)),
                    f"{np.median(speeds):.1f}" if speeds else "",
                    f"{sum(r['seconds'] for r in of):.0f}",
                )
    out.append(table)
    return out


# -- budget sweep ------------------------------------------------------------------------------------


def configurations(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Accuracy, speed and resident bytes of every configuration of the InfLLM memory."""
    ours = [r for r in results if r["method"] == "infllm" and r["task"] not in OF_TEXT]
    out = []
    for name in _unique([name_of(r) for r in ours]):
        of = [r for r in ours if name_of(r) == name]
        out.append(
            {
                "name": name,
                "accuracy": accuracy(of),
                "decode_tok_s": float(np.median([r["decode_tok_s"] for r in of])),
                "bytes_resident": max(r["bytes_resident"] for r in of),
            }
        )
    return out


def pareto_front(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that no other row beats in accuracy and resident bytes, the smallest first."""

    def beaten(row: dict[str, Any]) -> bool:
        return any(
            other["accuracy"] >= row["accuracy"]
            and other["bytes_resident"] <= row["bytes_resident"]
            and (other["accuracy"], other["bytes_resident"]) != (row["accuracy"], row["bytes_resident"])
            for other in rows
        )

    return sorted((row for row in rows if not beaten(row)), key=lambda row: row["bytes_resident"])


def recommend(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The smallest configuration within two points of the best accuracy."""
    best = max(row["accuracy"] for row in rows)
    return min(
        (row for row in rows if row["accuracy"] >= best - 0.02),
        key=lambda row: (row["bytes_resident"], -row["decode_tok_s"]),
    )


def sweep_table(rows: Sequence[dict[str, Any]]) -> Table:
    """All configurations; those on the Pareto front of accuracy and resident bytes are marked."""
    front = [row["name"] for row in pareto_front(rows)]
    table = _table(["configuration", "on the front", "accuracy", "resident", "decode, tok/s"])
    for row in sorted(rows, key=lambda row: row["bytes_resident"]):
        table.add_row(
            row["name"],
            "yes" if row["name"] in front else "",
            f"{100 * row['accuracy']:.0f} %",
            format_bytes(row["bytes_resident"]),
            f"{row['decode_tok_s']:.1f}",
        )
    return table


# -- pictures ----------------------------------------------------------------------------------------


def plot(results: Sequence[Result], directory: Path) -> list[Path]:
    """Write `pictures` as PNGs.

    Raises
    ------
    OSError
        When they cannot be written.
    RuntimeError
        When matplotlib is not installed.
    """
    made = pictures(results)
    directory.mkdir(parents=True, exist_ok=True)
    for name, figure in made.items():
        figure.savefig(directory / f"{name}.png")
    return [directory / f"{name}.png" for name in made]


def pictures(results: Sequence[Result]) -> dict[str, Figure]:
    """Heat maps of depth and length by task and method, perplexity by position, the budget; by name.

    Raises
    ------
    RuntimeError
        When matplotlib is not installed.
    """
    try:
        from matplotlib import figure
    except ImportError:
        raise RuntimeError(
            'pictures need matplotlib: install it with pip install "infllm-cpp[plot]"'
        ) from None

    made: dict[str, Figure] = {}

    def picture(name: str, draw: Callable[[Axes], None]) -> None:
        made[name] = figure.Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
        draw(made[name].add_subplot())

    retrieval = [r for r in results if r["task"] not in OF_TEXT]
    for task in _unique([r["task"] for r in retrieval]):
        for name in _unique([name_of(r) for r in retrieval if r["task"] == task]):
            of = [r for r in retrieval if r["task"] == task and name_of(r) == name]
            lengths, depths = sorted({r["length"] for r in of}), sorted({r["depth"] for r in of})
            grid = np.array(
                [
                    [
                        100 * accuracy([r for r in of if (r["length"], r["depth"]) == (length, depth)])
                        for length in lengths
                    ]
                    for depth in depths
                ]
            )

            def heat_map(
                axes: Axes,
                grid: Any = grid,
                lengths: Any = lengths,
                depths: Any = depths,
                title: str = f"{task}, {name}",
            ) -> None:
                image = axes.imshow(grid, cmap="RdYlGn", vmin=0, vmax=100, aspect="auto")
                axes.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths])
                axes.set_yticks(range(len(depths)), [f"{100 * d:.0f} %" for d in depths])
                axes.set(xlabel="length, tokens", ylabel="depth of the fact", title=title)
                axes.figure.colorbar(image, ax=axes, label="right answers, %")

            picture(f"{task}-{name.replace(' ', '-').replace('=', '')}", heat_map)

    texts = [r for r in results if r["task"] == "perplexity"]
    if texts:

        def curves(axes: Axes) -> None:
            for r in texts:
                middles = [(begin + end) / 2 for begin, end, _ in r["buckets"]]
                label = f"{name_of(r)}, {r['length']:,} tokens"
                axes.plot(middles, [math.exp(loss) for _, _, loss in r["buckets"]], marker="o", label=label)
            axes.set(title="perplexity by position", yscale="log")
            axes.set(xlabel="position, tokens", ylabel="perplexity")
            axes.legend()

        picture("perplexity", curves)

    rows = configurations(results)
    if len(rows) > 1:
        front = pareto_front(rows)

        def budget(axes: Axes) -> None:
            def points(of: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
                return [r["bytes_resident"] / 2**20 for r in of], [100 * r["accuracy"] for r in of]

            axes.scatter(*points(rows))
            axes.plot(*points(front), color="tab:red", label="Pareto front")
            axes.set(title="accuracy by resident bytes")
            axes.set(xlabel="resident, MiB", ylabel="right answers, %")
            axes.legend()

        picture("budget", budget)
    return made
