"""Simulate cache policies with libcachesim, as a program of its own.

``python cache_simulation.py in.npz out.npz``. A process of its own, because libcachesim and
`infllm_cpp._core` register a C++ type of the same name, and because libcachesim ends the process when it
dislikes a parameter. So nothing of this package may be imported here. `analysis.simulate` explains the
arrays.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

_NEVER = 2**63 - 1


def make_cache(policy: str, n_slot: int) -> Any:
    """A cache for `n_slot` blocks, each of size 1."""
    params: dict[str, Any] = {"cache_size": n_slot, "hashpower": 10}
    if policy == "S3FIFO":
        # at its usual 10 %, rounded down, libcachesim's small queue must hold two objects, or takes none
        params["small_size_ratio"] = min(max(0.1, 2.5 / n_slot), 0.9)
    return getattr(importlib.import_module("libcachesim"), policy)(**params)


def next_use(
    selected: npt.NDArray[np.int32], n_blocks: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Steps in which blocks of a layer are selected next.

    Returns
    -------
    after : ndarray of int64
        ``[n_step, n_selected]``, like `selected`: after this step.
    first : ndarray of int64
        ``[n_blocks]``, after the beginning.
    """
    when = np.full(n_blocks + 1, _NEVER, np.int64)  # the last one is for -1
    after = np.empty(selected.shape, np.int64)
    for i in range(len(selected) - 1, -1, -1):
        after[i] = when[selected[i]]
        when[selected[i]] = i
    return after, when[:-1]


def run_layer(
    policy: str, n_slot: int, selected: npt.NDArray[np.int32], probe: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """One layer through one cache.

    As in the memory, the first `n_slot` blocks of the text are in the slots at the beginning, and the blocks
    of a selection that are resident are used before others are replaced.

    Parameters
    ----------
    selected : ndarray of int32
        ``[n_step, n_selected]``, filled up with -1.
    probe : ndarray of int32
        ``[n_step, n_probe]``: blocks to look for before the step, without using them.

    Returns
    -------
    n_hit : ndarray of int32
        ``[n_step]``
    found : ndarray of bool
        ``[n_step, n_probe]``
    """
    cache = make_cache(policy, n_slot)
    request_type = importlib.import_module("libcachesim").Request
    after, first = next_use(selected, max(int(selected.max()) + 1, n_slot))
    for block in range(n_slot):
        cache.get(request_type(obj_id=block + 1, next_access_vtime=int(first[block])))

    n_hit = np.zeros(len(selected), np.int32)
    found = np.zeros(probe.shape, np.bool_)
    for i, (blocks, next_steps) in enumerate(zip(selected.tolist(), after.tolist(), strict=True)):
        for j, block in enumerate(probe[i].tolist()):
            found[i, j] = cache.find(request_type(obj_id=block + 1), False) is not None
        requests = [
            request_type(obj_id=block + 1, clock_time=i, next_access_vtime=step)
            for block, step in zip(blocks, next_steps, strict=True)
            if block >= 0
        ]
        resident = [cache.find(request, False) is not None for request in requests]
        # sorted() is stable: best first among the resident ones, and among the others
        for k in sorted(range(len(requests)), key=lambda k: not resident[k]):
            n_hit[i] += cache.get(requests[k])
    return n_hit, found


def main(path_in: str, path_out: str) -> None:
    """Read the arrays, simulate, write what came out."""
    data = np.load(path_in)
    selected, probe = data["selected"], data["probe"]
    policies, n_slots = data["policies"].tolist(), data["n_slots"].tolist()
    n_slot_probe = int(data["n_slot_probe"])
    n_step, n_layer, _ = selected.shape

    n_hit = np.zeros((len(policies), len(n_slots), n_step, n_layer), np.int32)
    found = np.zeros(probe.shape, np.bool_)
    no_probe = np.empty((n_step, 0), np.int32)
    for p, policy in enumerate(policies):
        for s, n_slot in enumerate(n_slots):
            for il in range(n_layer):
                n_hit[p, s, :, il], _ = run_layer(policy, n_slot, selected[:, il], no_probe)
    if probe.size:
        for il in range(n_layer):
            _, found[:, il] = run_layer("LRU", n_slot_probe, selected[:, il], probe[:, il])
    np.savez(path_out, n_hit=n_hit, found=found)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
