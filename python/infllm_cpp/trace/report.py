"""The report on a trace: tables for a terminal, and one HTML file with figures in it."""

from __future__ import annotations

import base64
import html
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .._format import format_bytes, visible
from .analysis import LEADS, POLICIES, Analysis, Phase, heat_map, multi_hot, require

_MIB = 2**20
_MAX_PIXELS = 2000  # steps of the figure over time


@dataclass(frozen=True)
class TextTable:
    """A table of strings: the first row names the columns, the first column the rows."""

    title: str
    note: str
    rows: list[list[str]]


def parse_slots(text: str) -> list[int]:
    """ "16,32" -> [16, 32]."""
    try:
        slots = [int(part) for part in text.split(",")]
        if min(slots) < 1:
            raise ValueError
    except ValueError:
        raise ValueError(f"slots = {text!r} is not a list of numbers from 1, such as 16,32,64") from None
    return slots


# -- tables --------------------------------------------------------------------------------------------


def make_tables(analysis: Analysis) -> list[TextTable]:
    """All tables of the report."""
    tables = [_recorded(analysis)]
    for phase in analysis.phases:
        tables.append(_hit_rates(analysis, phase))
    tables += [_traffic(analysis), _overlap(analysis), _neighbours(analysis)]
    tables += [_reuse(analysis), _working_sets(analysis), _prediction(analysis)]
    return tables


def _recorded(analysis: Analysis) -> TextTable:
    trace, header = analysis.trace, analysis.trace.header
    end = trace.pos[-1] + trace.n_tokens[-1]
    infllm = ", ".join(f"{name} {value}" for name, value in header.infllm.items() if value is not None)
    rows = [
        ["", "value"],
        ["model", f"{header.model}, {header.n_layer} layers"],
        ["InfLLM memory", infllm],
        ["tokens", f"from {trace.pos[0]:,} to {end:,}"],
        ["steps", ", ".join(f"{phase.name} {phase.n_step:,}" for phase in analysis.phases)],
        ["blocks at the end", f"{trace.n_blocks[-1]:,}, {format_bytes(header.block_bytes)} a layer"],
    ]
    if trace.truncated:
        rows.append(["cut off", "the file ends within a step, which is left out"])
    return TextTable("What was recorded", "A step is a ubatch, or a decoded token.", rows)


def _hit_rates(analysis: Analysis, phase: Phase) -> TextTable:
    rows = [["slots", *(str(n) for n in analysis.n_slots)]]
    for policy, rates in zip(analysis.policies, phase.hit_rate, strict=True):
        rows.append([POLICIES[policy], *map(_percent, rates)])
    rows.append(["LRU, same slots distributed", *map(_percent, phase.hit_rate_distributed)])
    lru = phase.hit_rate[analysis.policies.index("LRU")]
    best = phase.hit_rate[analysis.policies.index("Belady")]
    ratio = (1 - lru) / np.maximum(1 - best, 1e-9)
    rows.append(["page-ins of LRU over optimum", *(f"{r:.2f}" if r < 1e6 else "-" for r in ratio)])
    return TextTable(
        f"Hit rate, {phase.name}",
        "Selected blocks that were resident, all layers. The recorded run, LRU with "
        f"{analysis.n_slot} slots: {_percent(phase.hit_rate_recorded)}. Distributed: as many slots in all, "
        "more for some layers and fewer for others, chosen with hindsight.",
        rows,
    )


def _traffic(analysis: Analysis) -> TextTable:
    """Page-ins of the recorded run, and of simulated ones."""
    header = analysis.trace.header
    rows = [["", *(phase.name for phase in analysis.phases)]]

    def row(name: str, value: Callable[[Phase], float], form: str) -> None:
        rows.append([name, *(form.format(value(phase)) for phase in analysis.phases)])

    def mib(phase: Phase, n_page_in: float) -> float:
        return n_page_in * header.block_bytes / _MIB / phase.n_step

    row("blocks a step, recorded", lambda phase: phase.n_page_in / phase.n_step, "{:.1f}")
    row("MiB a step, recorded", lambda phase: mib(phase, phase.n_page_in), "{:.2f}")
    for policy in ("LRU", "Belady"):
        p = analysis.policies.index(policy)
        for s, n_slot in enumerate(analysis.n_slots):
            row(
                f"MiB a step, {POLICIES[policy]}, {n_slot} slots",
                lambda phase, p=p, s=s: mib(phase, (1 - phase.hit_rate[p, s]) * phase.n_selected),  # type: ignore[misc]
                "{:.2f}",
            )
    return TextTable("Page-in traffic", "From the store to slots, all layers.", rows)


def _overlap(analysis: Analysis) -> TextTable:
    lags = sorted({lag for phase in analysis.phases for lag in phase.overlap_lag})
    rows = [["steps apart", *map(str, lags), "by chance"]]
    for phase in analysis.phases:
        means = (phase.overlap_lag.get(lag) for lag in lags)
        cells = ["" if mean is None else _percent(mean.mean()) for mean in means]
        rows.append([phase.name, *cells, _percent(phase.overlap_chance)])
    return TextTable(
        "Overlap between steps", "Part of a layer's selection that it selected so many steps before.", rows
    )


def _neighbours(analysis: Analysis) -> TextTable:
    leads = [lead for lead in LEADS if lead < len(analysis.trace.layers)]
    rows = [["layers apart", *map(str, leads), "by chance"]]
    for phase in analysis.phases:
        cells = [_percent(np.diag(phase.overlap_layers, lead).mean()) for lead in leads]
        rows.append([phase.name, *cells, _percent(phase.overlap_chance)])
    return TextTable(
        "Overlap between layers",
        "Part of a layer's selection that the layer so many before it selects in the same step.",
        rows,
    )


def _reuse(analysis: Analysis) -> TextTable:
    rows = [["", *(phase.name for phase in analysis.phases)]]
    rows.append(
        ["selected for the first time", *(_percent(p.n_first / p.n_selected) for p in analysis.phases)]
    )
    for name, values in (
        ("steps since the last use", [phase.reuse_steps for phase in analysis.phases]),
        ("other blocks used since", [phase.reuse_distance for phase in analysis.phases]),
    ):
        for q in (50, 75, 90, 99):
            cells = [f"{np.percentile(v, q):.0f}" if v.size else "" for v in values]
            rows.append([f"{name}, {q}th percentile", *cells])
    return TextTable("Reuse distance", "Of a block selected before by the same layer.", rows)


def _working_sets(analysis: Analysis) -> TextTable:
    windows = sorted({window for phase in analysis.phases for window in phase.working_set})
    rows = [["steps", *map(str, windows)]]
    for phase in analysis.phases:
        for name, reduce in (("mean of the layers", np.mean), ("largest layer", np.max)):
            sizes = (phase.working_set.get(window) for window in windows)
            cells = ["" if size is None else f"{reduce(size):.1f}" for size in sizes]
            rows.append([f"{phase.name}, {name}", *cells])
    return TextTable("Working set", "Different blocks that a layer selects in so many steps on end.", rows)


def _prediction(analysis: Analysis) -> TextTable:
    rows = [["layers apart", "page-ins covered", "prefetched blocks needed", "prefetched per page-in"]]
    for phase in analysis.phases:
        for p in phase.prediction:
            per_page_in = p.n_fetched / max(p.n_missing, 1)
            rows.append(
                [f"{phase.name}, {p.lead}", _percent(p.coverage), _percent(p.precision), f"{per_page_in:.2f}"]
            )
    return TextTable(
        "Prediction of a layer's selection by that of a layer before it",
        f"Fetching the selection of the earlier layer into the later one, LRU, {analysis.n_slot} slots; "
        "what the prefetched blocks replace is not counted.",
        rows,
    )


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def print_report(analysis: Analysis) -> None:
    """The tables on stdout, as Markdown when piped."""
    out = Console(soft_wrap=True, highlight=False)
    for table in make_tables(analysis):
        head, *body = table.rows
        if out.is_terminal:
            shown = Table(title=table.title, caption=table.note, title_justify="left", caption_justify="left")
            for i, name in enumerate(head):
                shown.add_column(name, justify="right" if i else "left")
            for row in body:
                shown.add_row(*(Text(visible(cell)) for cell in row))
            out.print(shown)
            out.print()
        else:
            print(f"## {table.title}\n\n{table.note}\n")
            print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
            for row in body:
                print("| " + " | ".join(row) + " |")
            print()


# -- figures -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A figure of matplotlib with its words."""

    title: str
    note: str
    drawn: Any


def make_figures(analysis: Analysis) -> list[Figure]:
    """All figures of the report; without a simulation those that need none.

    Raises
    ------
    RuntimeError
        When matplotlib is missing.
    """
    require("matplotlib")
    simulated = [_draw_hit_rates(analysis), _draw_layers(analysis)] if analysis.policies else []
    return [
        _draw_heat_map(analysis),
        _draw_time(analysis),
        *simulated,
        _draw_overlap(analysis),
        _draw_overlap_layers(analysis),
        _draw_reuse(analysis),
        _draw_working_sets(analysis),
        _draw_traffic(analysis),
    ]


def _axes(n_row: int, n_column: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure without a display, and its axes ``[n_row, n_column]``; inches."""
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(width, height), layout="constrained"
    )
    return figure, figure.subplots(n_row, n_column, squeeze=False)


def _draw_heat_map(analysis: Analysis) -> Figure:
    """Layer x block, in two halves of each phase."""
    trace = analysis.trace
    n_blocks = int(trace.n_blocks.max())
    parts = []
    for phase in analysis.phases:
        halves = np.array_split(np.flatnonzero(phase.steps), 2 if phase.n_step > 1 else 1)
        parts += [
            (f"{phase.name}, steps {steps[0] + 1} to {steps[-1] + 1}", steps)
            for steps in halves
            if len(steps)
        ]
    figure, axes = _axes(len(parts), 1, 11, 2.6 * len(parts))
    for axis, (name, steps) in zip(axes[:, 0], parts, strict=True):
        image = axis.imshow(
            heat_map(trace.selected[steps], n_blocks),
            aspect="auto",
            interpolation="nearest",
            cmap="magma",
            vmin=0,
            vmax=1,
            extent=(0, n_blocks, len(trace.layers) - 0.5, -0.5),
        )
        axis.set(title=name, xlabel="block", ylabel="layer")
    figure.colorbar(image, ax=axes, label="part of the steps that select it")
    return Figure("Which blocks each layer selects", "Time runs from the upper to the lower panels.", figure)


def _draw_time(analysis: Analysis) -> Figure:
    """Block x step: layers that select it."""
    trace = analysis.trace
    every = -(-trace.n_step // _MAX_PIXELS)
    n_blocks = int(trace.n_blocks.max())
    shown = multi_hot(trace.selected[::every], n_blocks).mean(1).T
    figure, axes = _axes(1, 1, 11, 4.5)
    axis = axes[0, 0]
    image = axis.imshow(
        shown,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        cmap="magma",
        extent=(0, trace.n_step, 0, n_blocks),
    )
    axis.step(np.arange(trace.n_step), trace.n_blocks, color="white", linewidth=0.8, where="post")
    axis.set(xlabel="step", ylabel="block")
    figure.colorbar(image, ax=axes, label="part of the layers that select it")
    return Figure("Which blocks are selected over time", "White line: blocks there are.", figure)


def _draw_hit_rates(analysis: Analysis) -> Figure:
    figure, axes = _axes(1, len(analysis.phases), 5.5 * len(analysis.phases), 4)
    for axis, phase in zip(axes[0], analysis.phases, strict=True):
        for policy, rates in zip(analysis.policies, phase.hit_rate, strict=True):
            style = "k--" if policy == "Belady" else "-"
            axis.plot(analysis.n_slots, 100 * rates, style, marker=".", label=POLICIES[policy])
        axis.plot(analysis.n_slot, 100 * phase.hit_rate_recorded, "o", mfc="none", label="recorded run")
        axis.set_xscale("log", base=2)
        axis.set_xticks(analysis.n_slots, [str(n) for n in analysis.n_slots])
        axis.set(title=phase.name, xlabel="slots per layer", ylabel="hit rate, %")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return Figure("Hit rate against slots", "All layers, one cache of so many slots for each.", figure)


def _draw_layers(analysis: Analysis) -> Figure:
    """Per layer: hit rate, overlap of consecutive steps, and with the layer before."""
    figure, axes = _axes(1, len(analysis.phases), 5.5 * len(analysis.phases), 3.5)
    layers, s = analysis.trace.layers, analysis.n_slots.index(analysis.n_slot)
    for axis, phase in zip(axes[0], analysis.phases, strict=True):
        for policy in ("LRU", "Belady"):
            rates = phase.hit_rate_layers[analysis.policies.index(policy), s]
            axis.plot(layers, 100 * rates, label=f"hit rate, {POLICIES[policy]}, {analysis.n_slot} slots")
        if 1 in phase.overlap_lag:
            axis.plot(layers, 100 * phase.overlap_lag[1], label="overlap with the step before")
        axis.plot(layers[1:], 100 * np.diag(phase.overlap_layers, 1), label="overlap with the layer before")
        axis.set(title=phase.name, xlabel="layer", ylabel="%", ylim=(0, 100))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return Figure("Layer by layer", "Mean over the steps.", figure)


def _draw_overlap(analysis: Analysis) -> Figure:
    figure, axes = _axes(1, 1, 7, 3.5)
    axis = axes[0, 0]
    for phase in analysis.phases:
        means = [100 * mean.mean() for mean in phase.overlap_lag.values()]
        (line,) = axis.plot(list(phase.overlap_lag), means, marker=".", label=phase.name)
        axis.axhline(
            100 * phase.overlap_chance, color=line.get_color(), ls=":", label=f"{phase.name}, by chance"
        )
    axis.set_xscale("log", base=2)
    axis.set(xlabel="steps apart", ylabel="overlap, %", ylim=(0, 100))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return Figure("Overlap between steps", "Part of a layer's selection that it selected before.", figure)


def _draw_overlap_layers(analysis: Analysis) -> Figure:
    figure, axes = _axes(1, len(analysis.phases), 5.5 * len(analysis.phases), 4.5)
    for axis, phase in zip(axes[0], analysis.phases, strict=True):
        image = axis.imshow(100 * phase.overlap_layers, cmap="magma", vmin=0, vmax=100, origin="lower")
        axis.set(title=phase.name, xlabel="layer", ylabel="layer")
    figure.colorbar(image, ax=axes, label="overlap, %")
    return Figure("Overlap between layers", "Selections of the same step.", figure)


def _draw_reuse(analysis: Analysis) -> Figure:
    figure, axes = _axes(1, 2, 11, 3.5)
    for phase in analysis.phases:
        for axis, values in ((axes[0, 0], phase.reuse_steps), (axes[0, 1], phase.reuse_distance)):
            if values.size:
                count = np.bincount(values)
                axis.plot(100 * count.cumsum() / values.size, label=phase.name)
    axes[0, 0].set(xlabel="steps since the last use", ylabel="% of reused blocks", xscale="log")
    axes[0, 1].set(xlabel="other blocks used since", ylabel="% of reused blocks")
    axes[0, 1].axvline(analysis.n_slot, color="gray", ls=":", label="slots of the recorded run")
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return Figure("Reuse distance", "Cumulative, of blocks that the same layer selected before.", figure)


def _draw_working_sets(analysis: Analysis) -> Figure:
    figure, axes = _axes(1, 1, 7, 3.5)
    axis = axes[0, 0]
    for phase in analysis.phases:
        sizes = np.array(list(phase.working_set.values()))  # [n_window, n_layer]
        if sizes.size:
            (line,) = axis.plot(list(phase.working_set), sizes.mean(1), marker=".", label=phase.name)
            axis.fill_between(
                list(phase.working_set), sizes.min(1), sizes.max(1), color=line.get_color(), alpha=0.2
            )
    axis.axhline(analysis.n_slot, color="gray", ls=":", label="slots of the recorded run")
    axis.set_xscale("log", base=2)
    axis.set(xlabel="steps on end", ylabel="blocks of a layer")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return Figure("Working set", "Line: mean of the layers; shaded: smallest to largest layer.", figure)


def _draw_traffic(analysis: Analysis) -> Figure:
    trace = analysis.trace
    traffic = trace.n_page_in.sum(1) * trace.header.block_bytes / _MIB
    figure, axes = _axes(1, 1, 11, 3)
    axis = axes[0, 0]
    for phase in analysis.phases:
        steps = np.flatnonzero(phase.steps)
        axis.plot(steps, traffic[steps], ".", ms=3, label=phase.name)
    axis.set(xlabel="step", ylabel="MiB a step", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return Figure("Page-in traffic of the recorded run", "All layers.", figure)


# -- HTML ----------------------------------------------------------------------------------------------

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1150px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; }
td, th { padding: .2em .7em; border-bottom: 1px solid #ccc; text-align: right; }
td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; }
.note { color: #555; }
"""


def write_report(analysis: Analysis, path: Path) -> None:
    """One HTML file with tables and figures, which needs no other file.

    Raises
    ------
    OSError
        When it cannot be written.
    RuntimeError
        When matplotlib is missing.
    """
    title = html.escape(f"What {analysis.trace.header.model} reads again")
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>",
    ]
    for table in make_tables(analysis):
        parts.append(_heading(table.title, table.note) + "<table>")
        for i, row in enumerate(table.rows):
            cell = "td" if i else "th"
            parts.append("<tr>" + "".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in row) + "</tr>")
        parts.append("</table>")
    for figure in make_figures(analysis):
        png = io.BytesIO()
        figure.drawn.savefig(png, format="png", dpi=100)
        data = base64.b64encode(png.getvalue()).decode()
        parts.append(_heading(figure.title, figure.note))
        parts.append(f'<img alt="{html.escape(figure.title)}" src="data:image/png;base64,{data}">')
    parts.append("</body></html>")
    path.write_text("\n".join(parts), encoding="utf-8")


def _heading(title: str, note: str) -> str:
    return f'<h2>{html.escape(title)}</h2><p class="note">{html.escape(note)}</p>'
