"""How many threads to compute with."""

from __future__ import annotations

import os

from ._system import read_text


def default_n_threads() -> int:
    """Physical cores that this process may use: affinity and a container's limit are heeded."""
    n_cores = os.cpu_count() or 1

    if hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
        # two hyper-threads of a core are slower than one: they wait for each other at every operation
        cores = {
            read_text(f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list") or str(i) for i in cpus
        }
        n_cores = len(cores)

    quota = read_text("/sys/fs/cgroup/cpu.max").split()  # "max 100000", or microseconds of a period
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        n_cores = min(n_cores, max(1, int(quota[0]) // int(quota[1])))

    return n_cores
