"""Who pages: a device that can, or the host, and why."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import _core
    from .config import InfLLMStats


class PagingWatch:
    """Warns, once, when the host pages layers that their device could."""

    def __init__(self) -> None:
        self._warned = False

    def look(self, ctx: _core.Context) -> None:
        """Warn if it is so now and has not been so before."""
        reason = "" if self._warned else ctx.paging_reason()
        stats = ctx.stats() if reason else None
        if stats is None or stats.n_layer_device >= stats.n_layer_pager:
            return
        self._warned = True
        warnings.warn(
            f"the host pages, which is slower than the device: {reason}; stats() tells who pages now",
            RuntimeWarning,
            stacklevel=4,
        )


def format_paging(stats: InfLLMStats) -> str:
    """One line for people."""
    n_host = stats.n_layer - stats.n_layer_device
    if n_host == 0:
        return "paged by the device"
    who = "host" if n_host == stats.n_layer else f"device, {n_host} of {stats.n_layer} layers by the host"
    return f"paged by the {who}" + (f" ({stats.paging_reason})" if stats.paging_reason else "")
