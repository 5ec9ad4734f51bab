"""What the machine, and a container's limits, leave to this process."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 2**60  # version 1 of cgroups writes a number near 2**63


class _MemoryStatus(ctypes.Structure):
    """``MEMORYSTATUSEX`` of Windows."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("load", ctypes.c_uint32),  # percent
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("other", ctypes.c_uint64 * 5),
    )


def available_memory() -> int | None:
    """Memory that can be taken without swapping, bytes; ``None`` where the system does not tell."""
    free = [size for size in (_machine_available(), _cgroup_available()) if size is not None]
    return min(free, default=None)


def _machine_available() -> int | None:
    for line in read_text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        status = _MemoryStatus(size=ctypes.sizeof(_MemoryStatus))
        return status.available if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _cgroup_available() -> int | None:
    for limit_name, usage_name, stat_name in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        limit, usage = read_text(_CGROUP / limit_name), read_text(_CGROUP / usage_name)
        if limit.isdigit() and usage.isdigit() and int(limit) < _UNLIMITED:
            # files that were read count as used until their memory is wanted
            stat = dict(line.split() for line in read_text(_CGROUP / stat_name).splitlines())
            return max(0, int(limit) - int(usage) + int(stat.get("inactive_file", 0)))
    return None


def read_text(path: str | os.PathLike[str]) -> str:
    """What a file of the system says; empty where there is none."""
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
