"""Who pages: when the host takes over from a device it is said once, and it ends with its cause."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import pytest

from conftest import N_FIRST_LAYERS, SMALL, Run
from infllm_cpp import Llama
from infllm_cpp._paging import format_paging

# the CPU's own pager, which runs the device's code
DEVICE = dataclasses.replace(SMALL, paging="device")


def test_a_device_whose_pinned_memory_ends(first_layers_path: Path, passkey: tuple[list[int], str]) -> None:
    tokens = passkey[0]
    config = dataclasses.replace(DEVICE, pinned_max_bytes=1 << 20)
    with Llama(first_layers_path, n_ctx=1280, n_batch=128, infllm=config) as llm:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            llm.eval(tokens[:512])
        stats = llm.stats()
        assert stats is not None
        assert stats.n_layer_device == stats.n_layer_pager == N_FIRST_LAYERS
        assert stats.paging_reason == "" and format_paging(stats) == "paged by the device"

        expected = r"^the host pages, .*: pinned_max_bytes = 1\.0 MiB is reached"
        with pytest.warns(RuntimeWarning, match=expected) as record:
            llm.eval(tokens[512:])
            llm.eval([100])
        assert len(record) == 1
        stats = llm.stats()
        assert stats is not None
        assert stats.n_layer_device == 0 and stats.n_layer_pager == N_FIRST_LAYERS
        assert stats.paging_reason == stats.layers[1].paging_reason == "pinned_max_bytes = 1.0 MiB is reached"
        assert format_paging(stats) == "paged by the host (pinned_max_bytes = 1.0 MiB is reached)"

        llm.reset()
        stats = llm.stats()
        assert stats is not None
        assert stats.n_layer_device == N_FIRST_LAYERS and stats.paging_reason == ""

        with warnings.catch_warnings():  # it is known by now
            warnings.simplefilter("error")
            llm.eval(tokens)
        stats = llm.stats()
        assert stats is not None and stats.n_layer_device == 0


def test_a_trace_is_made_by_the_host_while_it_lasts(
    first_layers_path: Path, passkey: tuple[list[int], str]
) -> None:
    events: list[object] = []
    with (
        warnings.catch_warnings(),
        Llama(first_layers_path, n_ctx=1280, n_batch=128, infllm=DEVICE) as llm,
    ):
        warnings.simplefilter("error")  # who traces knows
        llm.set_trace(events.append)
        llm.eval(passkey[0][:900])
        stats = llm.stats()
        assert stats is not None
        assert stats.n_layer_device == 0 and "traced" in stats.paging_reason

        llm.set_trace(None)
        llm.eval(passkey[0][900:])
        stats = llm.stats()
        assert stats is not None
        assert stats.n_layer_device == N_FIRST_LAYERS and stats.paging_reason == ""
    assert events


def test_a_cpu_alone_has_nothing_to_warn_of(llm: Llama, passkey: tuple[list[int], str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.eval(passkey[0])
    stats = llm.stats()
    assert stats is not None
    assert (stats.n_layer_pager, stats.n_layer_device, stats.paging_reason) == (0, 0, "")
    assert format_paging(stats) == "paged by the host"


def test_some_layers_are_paged_by_the_host(llm: Llama) -> None:
    stats = llm.stats()
    assert stats is not None
    some = dataclasses.replace(stats, n_layer_pager=20, n_layer_device=20)
    assert format_paging(some) == "paged by the device, 10 of 30 layers by the host"


def test_chat_says_who_pages(infllm: Run) -> None:
    result = infllm("chat", "--n-ctx", "1024", stdin="/stats\n")
    assert result.returncode == 0
    assert "\npaged by the host\n" in result.stderr
