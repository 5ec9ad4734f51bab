"""What a trace shows: reuse, overlap, working sets, hit rates, prediction of the next layer.

Functions of the array `selected`, int32 ``[n_step, n_layer, n_selected]``: the blocks that each layer
selected in a step, none twice, filled up with -1. A rate is a fraction from 0 to 1.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from . import cache_simulation
from .file import IntArray, Trace

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# names of libcachesim's classes, and of people
POLICIES = {
    "LRU": "LRU",
    "LFU": "LFU",
    "ARC": "ARC",
    "S3FIFO": "S3-FIFO",
    "Cacheus": "Cacheus",
    "Belady": "Belady (optimum)",
}
SLOTS_PER_SELECTED = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # slots to simulate: these times topk
LAGS = (1, 2, 4, 8, 16, 32, 64, 128)  # steps
WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # steps
LEADS = (1, 2, 4)  # layers

# the folder of the script must not be on the path: its modules are not those that others mean
_RUN = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


def multi_hot(selected: IntArray, n_blocks: int) -> BoolArray:
    """Which blocks are selected, ``[n_step, n_layer, n_blocks]``."""
    n_step, n_layer, _ = selected.shape
    hot = np.zeros((n_step, n_layer, n_blocks + 1), np.bool_)
    np.put_along_axis(hot, selected, True, axis=2)  # -1 is the last one
    return np.asarray(hot[:, :, :n_blocks], np.bool_)


def heat_map(selected: IntArray, n_blocks: int) -> FloatArray:
    """Fraction of the steps in which a layer selects a block, ``[n_layer, n_blocks]``."""
    n_step, n_layer, _ = selected.shape
    heat = np.zeros((n_layer, n_blocks))
    for il in range(n_layer):
        blocks = selected[:, il]
        heat[il] = np.bincount(blocks[blocks >= 0], minlength=n_blocks)[:n_blocks]
    return np.asarray(heat / max(n_step, 1), np.float64)


def reuse(selected: IntArray) -> tuple[IntArray, IntArray]:
    """When a layer selected the block before, for every selected block.

    Returns
    -------
    steps : ndarray of int32
        Steps since, like `selected`; 0: never before.
    distance : ndarray of int32
        Different other blocks that the layer selected in the steps between; -1: never before. An LRU cache of
        `n_slot` blocks can still hold a block if this is less than `n_slot`.
    """
    n_step, n_layer, _ = selected.shape
    steps = np.zeros(selected.shape, np.int32)
    distance = np.full(selected.shape, -1, np.int32)
    for il in range(n_layer):
        last = np.full(int(selected.max()) + 1, -1)  # step
        for i in range(n_step):
            blocks = selected[i, il]
            used = np.flatnonzero(blocks >= 0)
            when = last[blocks[used]]
            known = when >= 0
            steps[i, il, used[known]] = i - when[known]
            since = np.sort(last)
            n_since = len(since) - np.searchsorted(since, when[known], side="right")
            distance[i, il, used[known]] = n_since
            last[blocks[used]] = i
    return steps, distance


def working_set(selected: IntArray, window: int) -> FloatArray:
    """Different blocks that a layer selects in `window` steps on end, ``[n_step - window + 1, n_layer]``."""
    n_step, n_layer, _ = selected.shape
    size = np.zeros((max(n_step - window + 1, 0), n_layer))
    for il in range(n_layer):
        last = np.full(int(selected.max()) + 2, -(2**30))  # step; that of -1 is the last one
        for i in range(n_step):
            last[selected[i, il]] = i
            if i >= window - 1:
                size[i - window + 1, il] = (last[:-1] > i - window).sum()
    return size


def n_common(a: IntArray, b: IntArray) -> IntArray:
    """Blocks that two arrays ``[..., n_selected]`` have in common, ``[...]``."""
    same = (a[..., :, None] == b[..., None, :]) & (a[..., :, None] >= 0)
    return np.asarray(same.sum((-2, -1)), np.int32)


def overlap_steps(selected: IntArray, lag: int) -> FloatArray:
    """Part of a layer's selection that it selected `lag` steps before too, ``[n_step - lag, n_layer]``."""
    later, earlier = selected[lag:], selected[: len(selected) - lag]
    return np.asarray(n_common(later, earlier) / np.maximum((later >= 0).sum(-1), 1), np.float64)


def overlap_layers(selected: IntArray) -> FloatArray:
    """Part of a layer's selection that another layer selects in the same step, mean over the steps.

    ``[n_layer, n_layer]``: in row i and column j the part of j's selection that i selects too.
    """
    n_layer = selected.shape[1]
    overlap = np.empty((n_layer, n_layer))
    n_selected = np.maximum((selected >= 0).sum(-1), 1)
    for i in range(n_layer):
        for j in range(i, n_layer):
            common = n_common(selected[:, i], selected[:, j])
            overlap[i, j] = (common / n_selected[:, j]).mean()
            overlap[j, i] = (common / n_selected[:, i]).mean()
    return overlap


def overlap_by_chance(selected: IntArray, n_blocks: IntArray) -> float:
    """The overlap of two selections were they drawn from the `n_blocks` ``[n_step]`` blocks at random."""
    n_selected = (selected >= 0).sum(-1).mean(-1)
    return float((n_selected / np.maximum(n_blocks, 1)).mean())


@dataclass(frozen=True)
class Simulation:
    """What caches of one layer each would have done.

    Attributes
    ----------
    policies : tuple of str
        Names in `POLICIES`.
    n_slots : tuple of int
        Slots per layer.
    n_hit : ndarray of int32
        Selected blocks that were resident, ``[n_policy, len(n_slots), n_step, n_layer]``.
    found : ndarray of bool
        Blocks of `probe` that were resident before the step.
    """

    policies: tuple[str, ...]
    n_slots: tuple[int, ...]
    n_hit: IntArray
    found: BoolArray


def simulate(
    selected: IntArray,
    n_slots: Sequence[int],
    policies: Sequence[str] = tuple(POLICIES),
    probe: IntArray | None = None,
    n_slot_probe: int = 1,
) -> Simulation:
    """Run the selections through the caches of libcachesim, one cache a layer, one request a block.

    As in the memory, the first blocks of the text are in the slots at the beginning, and the blocks of a
    selection that are resident are used before others are replaced. So LRU with the slots of the run that was
    recorded is that run while it decodes; for several tokens at once the memory fills its slots anew. Other
    policies may replace a block selected in the same step; the memory would not.

    Parameters
    ----------
    probe : ndarray of int32 or None
        ``[n_step, n_layer, n_probe]``: blocks to look for in an LRU cache of `n_slot_probe` slots before each
        step.

    Raises
    ------
    ValueError
        When a number of slots is less than the blocks of a selection.
    RuntimeError
        When libcachesim is missing, or fails.
    """
    n_step, n_layer, n_selected = selected.shape
    for n_slot in n_slots:
        if n_slot < n_selected:
            raise ValueError(
                f"slots = {n_slot} is out of range: use at least {n_selected}, the blocks selected at once"
            )
    require("libcachesim")
    if probe is None:
        probe = np.empty((n_step, n_layer, 0), np.int32)
    with tempfile.TemporaryDirectory() as folder:
        path_in, path_out = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(
            path_in,
            selected=selected,
            probe=probe,
            n_slot_probe=n_slot_probe,
            policies=np.array(policies),
            n_slots=np.array(n_slots),
        )
        args = [cache_simulation.__file__, str(path_in), str(path_out)]
        run = subprocess.run(
            [sys.executable, "-c", _RUN, *args], capture_output=True, text=True, errors="replace", check=False
        )
        if run.returncode != 0:
            # libcachesim writes in colours
            lines = re.sub(r"\x1b\[[\d;]*m", "", run.stderr).strip().splitlines()
            lines = lines or [f"exit code {run.returncode}"]
            raise RuntimeError(f"the simulation of caches failed: {lines[-1]}")
        with np.load(path_out) as data:
            return Simulation(tuple(policies), tuple(n_slots), data["n_hit"], data["found"])


def distribute_slots(n_hit: IntArray, n_slots: Sequence[int], n_slot: int) -> IntArray:
    """Give each layer one of `n_slots`, `n_slot` on average, for many hits.

    Step by step, the layer that gains most per slot gets more: the optimum where hits grow ever slower.

    Parameters
    ----------
    n_hit : ndarray of int32
        Hits of each layer with so many slots, ``[len(n_slots), n_layer]``.
    n_slots : sequence of int
        Ascending.

    Returns
    -------
    ndarray of int32
        Indices into `n_slots`, ``[n_layer]``.
    """
    n_layer = n_hit.shape[1]
    sizes = np.array(n_slots)
    choice = np.zeros(n_layer, np.int32)
    while True:
        free = n_slot * n_layer - int(sizes[choice].sum())
        gains = [
            ((n_hit[s, il] - n_hit[choice[il], il]) / (sizes[s] - sizes[choice[il]]), il, s)
            for il in range(n_layer)
            for s in range(choice[il] + 1, len(sizes))
            if sizes[s] - sizes[choice[il]] <= free
        ]
        if not gains or max(gains)[0] <= 0:
            return choice
        _, il, s = max(gains)
        choice[il] = s


def require(name: str) -> None:
    """Raise RuntimeError when a package that reports need is missing."""
    if importlib.util.find_spec(name) is None:
        raise RuntimeError(f'the package {name} is missing: pip install "infllm-cpp[trace]"')


@dataclass(frozen=True)
class Prediction:
    """What fetching the selection of layer ``il - lead`` into layer ``il`` would have done, blocks.

    Attributes
    ----------
    lead : int
        Layers.
    n_missing : int
        Blocks that were selected and not resident.
    n_fetched : int
        Blocks that the prediction would have paged in.
    n_right : int
        Blocks in both.
    """

    lead: int
    n_missing: int
    n_fetched: int
    n_right: int

    @property
    def coverage(self) -> float:
        """Part of the page-ins that would have begun in time."""
        return self.n_right / max(self.n_missing, 1)

    @property
    def precision(self) -> float:
        """Part of the prefetched blocks that were needed."""
        return self.n_right / max(self.n_fetched, 1)


def probes(selected: IntArray, leads: Sequence[int] = LEADS) -> IntArray:
    """Blocks whose residency `predict` asks for: a layer's own, and those of the layers `leads` before it.

    ``[n_step, n_layer, (1 + len(leads)) * n_selected]``
    """
    shifted = [selected]
    for lead in leads:
        other = np.full_like(selected, -1)
        other[:, lead:] = selected[:, :-lead]
        shifted.append(other)
    return np.concatenate(shifted, axis=2)


def predict(
    selected: IntArray, found: BoolArray, steps: BoolArray, leads: Sequence[int] = LEADS
) -> list[Prediction]:
    """How well the selection of an earlier layer predicts what has to be paged in.

    Parameters
    ----------
    found : ndarray of bool
        Which blocks of `probes` were resident.
    steps : ndarray of bool
        Steps to count, ``[n_step]``.
    """
    blocks = probes(selected, leads)
    absent = np.where(found, -1, blocks)  # what is not resident, else -1
    own, *others = np.split(absent, 1 + len(leads), axis=2)
    result = []
    for lead, other in zip(leads, others, strict=True):
        missing, fetched = own[steps, lead:], other[steps, lead:]
        result.append(
            Prediction(
                lead=lead,
                n_missing=int((missing >= 0).sum()),
                n_fetched=int((fetched >= 0).sum()),
                n_right=int(n_common(missing, fetched).sum()),
            )
        )
    return result


def within(steps: BoolArray, window: int) -> BoolArray:
    """Windows of `window` steps that lie in `steps` ``[n_step]`` as a whole, ``[n_step - window + 1]``."""
    if len(steps) < window:
        return np.zeros(0, np.bool_)
    n = np.concatenate([[0], np.cumsum(steps)])
    return np.asarray(n[window:] - n[:-window] == window, np.bool_)


@dataclass(frozen=True)
class Phase:
    """The steps of prompts, or those of decoding, and what was found for them.

    Attributes
    ----------
    name : str
    steps : ndarray of bool
        ``[n_step]``
    overlap_lag : dict of int to ndarray
        Overlap of a layer's selections so many steps apart, mean ``[n_layer]``.
    overlap_layers : ndarray
        ``[n_layer, n_layer]``, see `overlap_layers`.
    overlap_chance : float
        What either would be by chance.
    working_set : dict of int to ndarray
        Blocks selected in so many steps on end, mean ``[n_layer]``.
    reuse_steps, reuse_distance : ndarray of int32
        See `reuse`, of all selected blocks that were selected before.
    n_selected, n_first, n_page_in : int
        Blocks selected; of which for the first time; of which were paged in by the run that was recorded.
    hit_rate : ndarray
        ``[n_policy, len(n_slots)]``
    hit_rate_layers : ndarray
        ``[n_policy, len(n_slots), n_layer]``
    hit_rate_distributed : ndarray
        LRU, as many slots in all, distributed over the layers with hindsight, ``[len(n_slots)]``
    prediction : list of Prediction
        With an LRU cache of as many slots as the run had.
    """

    name: str
    steps: BoolArray
    overlap_lag: dict[int, FloatArray]
    overlap_layers: FloatArray
    overlap_chance: float
    working_set: dict[int, FloatArray]
    reuse_steps: IntArray
    reuse_distance: IntArray
    n_selected: int
    n_first: int
    n_page_in: int
    hit_rate: FloatArray
    hit_rate_layers: FloatArray
    hit_rate_distributed: FloatArray
    prediction: list[Prediction]

    @property
    def n_step(self) -> int:
        """Steps."""
        return int(self.steps.sum())

    @property
    def hit_rate_recorded(self) -> float:
        """Of the run that was recorded."""
        return 1 - self.n_page_in / max(self.n_selected, 1)


@dataclass(frozen=True)
class Analysis:
    """All of it.

    Attributes
    ----------
    trace : Trace
    n_slot : int
        Slots of the run that was recorded.
    n_slots, policies : tuple
        What was simulated.
    phases : list of Phase
        Those that have steps.
    """

    trace: Trace
    n_slot: int
    n_slots: tuple[int, ...]
    policies: tuple[str, ...]
    phases: list[Phase]


def analyse(trace: Trace, n_slots: Sequence[int] | None = None, simulated: bool = True) -> Analysis:
    """Analyse a trace.

    Parameters
    ----------
    n_slots : sequence of int or None
        Slots per layer to simulate; those of the run that was recorded are added. ``None``: from `topk` to
        8 times as many.
    simulated : bool
        Whether caches are simulated, which needs libcachesim; else `policies`, `n_slots`, hit rates and
        predictions are empty.

    Raises
    ------
    ValueError, RuntimeError
        As `simulate`.
    """
    selected = trace.selected
    n_slot = int(trace.header.infllm.get("max_cached_blocks") or selected.shape[2])
    if n_slots is None:
        n_slots = [int(factor * selected.shape[2]) for factor in SLOTS_PER_SELECTED]
    n_slots = tuple(sorted({*n_slots, n_slot})) if simulated else ()
    if simulated:
        simulation = simulate(selected, n_slots, probe=probes(selected), n_slot_probe=n_slot)
    else:
        simulation = Simulation(
            (), (), np.zeros((0, 0, *selected.shape[:2]), np.int32), np.zeros(0, np.bool_)
        )

    used = selected >= 0
    n_selected = used.sum(-1)  # [n_step, n_layer]
    reuse_steps, reuse_distance = reuse(selected)
    lagged = {lag: overlap_steps(selected, lag) for lag in LAGS if lag < trace.n_step}
    sets = {window: working_set(selected, window) for window in WINDOWS if window <= trace.n_step}

    lru, columns = simulation.policies.index("LRU") if simulated else 0, np.arange(selected.shape[1])
    phases = []
    for name, steps in (("prompt", ~trace.is_decode), ("decoding", trace.is_decode)):
        if not steps.any():
            continue
        hits, total = simulation.n_hit[:, :, steps].sum(2), n_selected[steps].sum(0)
        again = used & (reuse_steps > 0) & steps[:, None, None]
        phases.append(
            Phase(
                name=name,
                steps=steps,
                overlap_lag={
                    lag: overlap[pairs].mean(0)
                    for lag, overlap in lagged.items()
                    if (pairs := steps[lag:] & steps[: len(steps) - lag]).any()
                },
                overlap_layers=overlap_layers(selected[steps]),
                overlap_chance=overlap_by_chance(selected[steps], trace.n_blocks[steps]),
                working_set={
                    window: size[whole].mean(0)
                    for window, size in sets.items()
                    if (whole := within(steps, window)).any()
                },
                reuse_steps=reuse_steps[again],
                reuse_distance=reuse_distance[again],
                n_selected=int(total.sum()),
                n_first=int((used & (reuse_steps == 0))[steps].sum()),
                n_page_in=int(trace.n_page_in[steps].sum()),
                hit_rate=hits.sum(-1) / max(int(total.sum()), 1),
                hit_rate_layers=hits / np.maximum(total, 1),
                hit_rate_distributed=np.array(
                    [
                        hits[lru, distribute_slots(hits[lru], n_slots, n), columns].sum() / total.sum()
                        for n in n_slots
                    ]
                ),
                prediction=predict(selected, simulation.found, steps) if simulated else [],
            )
        )
    return Analysis(trace, n_slot, n_slots, simulation.policies, phases)
