"""Trace files, what is computed from them, and `infllm trace`."""

from __future__ import annotations

import base64
import platform
import re
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from conftest import SMALL
from infllm_cpp import Llama
from infllm_cpp.cli import trace as commands
from infllm_cpp.trace import TraceHeader, TraceReader, TraceWriter, analysis, read_trace

HEADER = TraceHeader("a model", n_layer=3, n_ctx=1024, n_ubatch=128, block_bytes=1024.0, infllm={"topk": 2})


@dataclass
class Event:
    il: int
    pos: int
    selected: list[int]
    n_tokens: int = 1
    n_page_in: int = 1
    n_blocks: int = 100
    scores: Any = field(init=False)

    def __post_init__(self) -> None:
        self.scores = np.zeros(self.n_blocks, np.float32)
        self.selected = np.array(self.selected, np.int32)  # type: ignore[assignment]


def write(path: Path, *events: Event) -> Path:
    with TraceWriter(path, HEADER) as writer:
        for event in events:
            writer(event)  # type: ignore[arg-type]
    return path


@pytest.fixture
def events() -> list[Event]:
    """A prompt's ubatch, two tokens; layer 1 does not select, layer 2 has one block less."""
    return [
        Event(0, 500, [7, 3], n_tokens=128),
        Event(2, 500, [99], n_tokens=128, n_page_in=0),
        Event(0, 628, [3, 7]),
        Event(2, 628, [98]),
        Event(0, 629, [3, 1]),
        Event(2, 629, [98], n_page_in=0),
    ]


@pytest.fixture
def random_selection() -> np.ndarray[Any, np.dtype[np.int32]]:
    """Skewed, slowly changing: ``[60, 3, 4]`` of 40 blocks."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, 41)
    rows = [rng.choice(40, 4, replace=False, p=weights / weights.sum()) for _ in range(60 * 3)]
    return np.array(rows, np.int32).reshape(60, 3, 4)


# -- the file ------------------------------------------------------------------------------------------


def test_a_trace_is_read_as_it_was_written(tmp_path: Path, events: list[Event]) -> None:
    reader = TraceReader(write(tmp_path / "t.trace", *events))
    assert reader.header == HEADER
    for _ in range(2):
        steps = list(reader)
        assert not reader.truncated
        assert [(step.pos, step.n_tokens, step.n_blocks) for step in steps] == [
            (500, 128, 100),
            (628, 1, 100),
            (629, 1, 100),
        ]
        assert [step.layers.tolist() for step in steps] == [[0, 2]] * 3
        assert [[blocks.tolist() for blocks in step.selected] for step in steps] == [
            [[7, 3], [99]],
            [[3, 7], [98]],
            [[3, 1], [98]],
        ]
        assert [step.n_page_in.tolist() for step in steps] == [[1, 0], [1, 1], [1, 0]]


def test_a_whole_trace_is_arrays(tmp_path: Path, events: list[Event]) -> None:
    trace = read_trace(write(tmp_path / "t.trace", *events))
    assert trace.layers.tolist() == [0, 2]
    assert trace.selected.tolist() == [[[7, 3], [99, -1]], [[3, 7], [98, -1]], [[3, 1], [98, -1]]]
    assert trace.is_decode.tolist() == [False, True, True]
    assert trace.n_page_in.tolist() == [[1, 0], [1, 1], [1, 0]]


def test_a_block_takes_two_bytes(tmp_path: Path) -> None:
    blocks = list(range(16))
    few = write(tmp_path / "a", *(Event(il, 1, blocks) for il in range(3))).stat().st_size
    many = (
        write(tmp_path / "b", *(Event(il, pos, blocks) for pos in (1, 2) for il in range(3))).stat().st_size
    )
    assert many - few == 14 + 3 * (6 + 2 * 16)


def test_more_blocks_than_two_bytes_can_number(tmp_path: Path) -> None:
    path = write(tmp_path / "t.trace", Event(0, 5, [70000, 1], n_blocks=70001))
    assert read_trace(path).selected.tolist() == [[[70000, 1]]]


def test_a_file_cut_off_anywhere_gives_the_steps_before_the_cut(tmp_path: Path, events: list[Event]) -> None:
    whole = write(tmp_path / "whole", *events).read_bytes()
    begin = len(write(tmp_path / "none").read_bytes())
    n_step = (len(whole) - begin) // 3
    path = tmp_path / "cut"
    for n in range(begin, len(whole) + 1):
        path.write_bytes(whole[:n])
        reader = TraceReader(path)
        assert len(list(reader)) == (n - begin) // n_step
        assert reader.truncated == ((n - begin) % n_step != 0)


def test_a_cut_header_is_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole").read_bytes()
    path = tmp_path / "cut"
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            TraceReader(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGUF and so on", "is not a trace: make one with"),
        (b"INFLLM\0\x02", "trace version 2, this program reads 1"),
        (b"INFLLM\0\1\2\0\0\0[]", "its header cannot be read"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        TraceReader(path)


def test_a_damaged_step_is_refused(tmp_path: Path, events: list[Event]) -> None:
    path = write(tmp_path / "t.trace", *events)
    data = bytearray(path.read_bytes())
    begin = len(write(tmp_path / "none").read_bytes())
    data[begin + 14] = 200  # its first layer
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"is damaged: what begins at byte {begin} is not a step"):
        list(TraceReader(path))


def test_a_trace_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no step"):
        read_trace(write(tmp_path / "t.trace"))


# -- analysis ------------------------------------------------------------------------------------------


def one_layer(*rows: list[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(rows, np.int32)[:, None, :]


def test_reuse_counts_steps_and_other_blocks() -> None:
    selected = one_layer([1, 2], [1, 3], [4, -1], [2, 4])
    steps, distance = analysis.reuse(selected)
    assert steps[:, 0].tolist() == [[0, 0], [1, 0], [0, 0], [3, 1]]
    # between its uses in steps 0 and 3, block 2 saw 1, 3 and 4
    assert distance[:, 0].tolist() == [[-1, -1], [0, -1], [-1, -1], [3, 0]]


def test_working_set_is_the_blocks_of_a_window() -> None:
    selected = one_layer([1, 2], [1, 3], [4, -1], [2, 4])
    assert analysis.working_set(selected, 1)[:, 0].tolist() == [2, 2, 1, 2]
    assert analysis.working_set(selected, 2)[:, 0].tolist() == [3, 3, 2]
    assert analysis.working_set(selected, 4)[:, 0].tolist() == [4]
    assert analysis.working_set(selected, 5).shape == (0, 1)


def test_working_set_agrees_with_sets(random_selection: Any) -> None:
    sizes = analysis.working_set(random_selection, 7)
    for i, il in np.ndindex(sizes.shape):
        assert sizes[i, il] == len(set(random_selection[i : i + 7, il].ravel().tolist()))


def test_overlap_between_steps() -> None:
    selected = one_layer([1, 2], [2, 1], [2, 3], [4, -1])
    assert analysis.overlap_steps(selected, 1)[:, 0].tolist() == [1, 0.5, 0]
    assert analysis.overlap_steps(selected, 2)[:, 0].tolist() == [0.5, 0]


def test_overlap_between_layers() -> None:
    selected = np.array([[[1, 2], [2, -1]], [[1, 2], [3, 4]]], np.int32)
    # layer 1 selects half of layer 0's blocks once; layer 0 all of layer 1's once
    assert analysis.overlap_layers(selected).tolist() == [[1, 0.5], [0.25, 1]]


def test_overlap_by_chance() -> None:
    assert analysis.overlap_by_chance(
        one_layer([1, 2], [1, 2]), np.array([4, 20], np.int32)
    ) == pytest.approx(0.3)


def test_heat_map_is_the_part_of_the_steps() -> None:
    selected = one_layer([1, 2], [1, -1])
    assert analysis.heat_map(selected, 4).tolist() == [[0, 1, 0.5, 0]]
    assert analysis.multi_hot(selected, 4)[1, 0].tolist() == [False, True, False, False]


def test_slots_go_where_they_bring_hits() -> None:
    #                 layers: steady, wants more, wants a little more
    n_hit = np.array([[90, 10, 50], [91, 40, 60], [92, 90, 61]], np.int32)  # with 16, 32 and 64 slots
    assert analysis.distribute_slots(n_hit, (16, 32, 64), 16).tolist() == [0, 0, 0]
    assert analysis.distribute_slots(n_hit, (16, 32, 64), 32).tolist() == [0, 2, 0]
    assert analysis.distribute_slots(n_hit, (16, 32, 64), 38).tolist() == [0, 2, 1]
    assert analysis.distribute_slots(n_hit, (16, 32, 64), 64).tolist() == [2, 2, 2]


def test_windows_within_a_phase() -> None:
    steps = np.array([True, True, False, True, True, True])
    assert analysis.within(steps, 2).tolist() == [True, False, False, True, True]
    assert analysis.within(steps, 7).tolist() == []


def test_prediction_counts_what_was_not_resident() -> None:
    selected = np.array([[[1, 2, 3], [2, 3, 4]]], np.int32)
    found = np.zeros((1, 2, 6), np.bool_)
    found[0, 1, 0] = True  # layer 1 has block 2, of its own selection
    found[0, 1, 3 + 1] = True  # the same block in that of layer 0
    (prediction,) = analysis.predict(selected, found, np.array([True]), leads=(1,))
    # missing 3 and 4; 1 and 3 would be fetched; 3 is right
    assert (prediction.n_missing, prediction.n_fetched, prediction.n_right) == (2, 2, 1)
    assert prediction.coverage == prediction.precision == 0.5


# -- caches --------------------------------------------------------------------------------------------


def lru_hits(selected: Any, n_slot: int) -> list[int]:
    """A plain LRU cache of one layer, as the memory runs it: ``[n_step, n_selected]`` -> hits a step."""
    cache = OrderedDict((block, None) for block in range(n_slot))
    hits = []
    for blocks in selected.tolist():
        resident = [block for block in blocks if block in cache]
        for block in resident + [block for block in blocks if block not in cache]:
            if block in cache:
                cache.move_to_end(block)
            else:
                cache.popitem(last=False)
                cache[block] = None
        hits.append(len(resident))
    return hits


@pytest.fixture(scope="module")
def libcachesim() -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("libcachesim has no wheel for this platform")
    analysis.require("libcachesim")


@pytest.mark.usefixtures("libcachesim")
def test_lru_is_that_of_a_plain_model(random_selection: Any) -> None:
    result = analysis.simulate(random_selection, (4, 6, 16), ("LRU",))
    for s, n_slot in enumerate(result.n_slots):
        for il in range(3):
            assert result.n_hit[0, s, :, il].tolist() == lru_hits(random_selection[:, il], n_slot)


@pytest.mark.usefixtures("libcachesim")
def test_no_policy_is_better_than_belady(random_selection: Any) -> None:
    result = analysis.simulate(random_selection, (4, 6, 16, 40))
    hits = dict(zip(result.policies, result.n_hit.sum((2, 3)), strict=True))
    for policy, n_hit in hits.items():
        assert (n_hit <= hits["Belady"]).all(), policy
        # there is a slot for every block; Cacheus' two lists are not full at the same time
        assert n_hit[-1] == random_selection.size or policy == "Cacheus"
    assert (hits["Belady"] > hits["LRU"])[:3].all()


@pytest.mark.usefixtures("libcachesim")
def test_probes_find_what_is_resident_and_change_nothing() -> None:
    selected = one_layer([5, 6], [7, 5], [5, 8])
    probe = np.array([[[0, 1, 5]], [[1, 5, 6]], [[6, 7, 5]]], np.int32)
    result = analysis.simulate(selected, (2,), ("LRU",), probe, n_slot_probe=2)
    assert result.found[:, 0].tolist() == [[True, True, False], [False, True, True], [False, True, True]]
    assert result.n_hit[0, 0, :, 0].tolist() == [0, 1, 1]


def test_fewer_slots_than_selected_blocks_are_refused(random_selection: Any) -> None:
    with pytest.raises(ValueError, match="slots = 3 is out of range: use at least 4"):
        analysis.simulate(random_selection, (3,))


@pytest.mark.usefixtures("libcachesim")
def test_a_simulation_that_fails_says_so(random_selection: Any) -> None:
    with pytest.raises(RuntimeError, match=r"the simulation of caches failed: .*NoSuchPolicy"):
        analysis.simulate(random_selection, (4,), ("NoSuchPolicy",))


def test_a_missing_package_is_named() -> None:
    with pytest.raises(
        RuntimeError, match=r'the package no_such_package is missing: pip install "infllm-cpp'
    ):
        analysis.require("no_such_package")


# -- a model -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(shared_llm: Llama, passkey: tuple[list[int], str], tmp_path_factory: Any) -> tuple[Path, Any]:
    """The trace of a passkey prompt and its answer, and the statistics of that run."""
    path = tmp_path_factory.mktemp("trace") / "passkey.trace"
    shared_llm.reset()
    shared_llm.reset_stats()
    with TraceWriter(path, TraceHeader.of(shared_llm)) as writer:
        shared_llm.set_trace(writer)
        shared_llm.create_completion(passkey[0], max_tokens=8, temperature=0)
        shared_llm.set_trace(None)
    return path, shared_llm.stats()


def test_a_recording_holds_every_selection(recorded: tuple[Path, Any]) -> None:
    trace, stats = read_trace(recorded[0]), recorded[1]
    assert trace.header.n_layer == len(trace.layers) == stats.n_layer
    assert trace.header.infllm["topk"] == SMALL.topk
    assert trace.selected.size == (trace.selected >= 0).sum() == stats.n_selected
    assert trace.n_page_in.sum() == stats.n_page_in
    assert trace.n_page_in.sum() * trace.header.block_bytes == stats.bytes_paged_in
    assert trace.is_decode.sum() >= 3
    assert (np.diff(trace.pos) == trace.n_tokens[:-1]).all()


@pytest.mark.usefixtures("libcachesim")
def test_simulated_lru_is_what_the_memory_did(recorded: tuple[Path, Any]) -> None:
    """While it decodes: for the question slots are filled anew, here with what is selected alone."""
    trace = read_trace(recorded[0])
    n_slot = trace.header.infllm["max_cached_blocks"]
    assert n_slot == trace.header.infllm["topk"]
    first = int(np.argmax(trace.is_decode)) - 1
    assert trace.is_decode[first + 1 :].all()
    result = analysis.simulate(trace.selected[first:], (n_slot,), ("LRU",))
    n_hit = trace.selected[first + 1 :].size - trace.n_page_in[first + 1 :].sum()
    # in a tie of two blocks last used in the same step the two may differ
    assert result.n_hit[:, :, 1:].sum() == pytest.approx(n_hit, rel=0.01)


@pytest.mark.usefixtures("libcachesim")
def test_the_report_has_tables_and_figures(
    recorded: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report.html"
    commands.report(trace=recorded[0], output=output, slots="8,16")
    page = output.read_text(encoding="utf-8")
    figures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(figures) == 9
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for data in figures)
    assert 'src="http' not in page

    text = capsys.readouterr().out
    for title in (
        "Hit rate, prompt",
        "Hit rate, decoding",
        "Overlap between layers",
        "Prediction of a layer",
    ):
        assert f"## {title}" in text
        assert title in page
    assert re.search(r"^\| Belady \(optimum\) \|( [\d.]+ % \|){2}$", text, re.MULTILINE)


@pytest.mark.usefixtures("libcachesim")
def test_a_trace_of_decoding_alone_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "t.trace", *(Event(il, pos, [pos, 9]) for pos in (1, 2) for il in range(3)))
    commands.report(trace=path, output=tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert "| slots | 2 | 3 | 4 | 6 | 8 | 12 | 16 |" in capsys.readouterr().out  # multiples of the selection


def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(commands.record)
    app.command()(commands.report)
    return app


SMALL_OPTIONS = [
    *("--n-init", "32", "--n-local", "256", "--block-size", "32", "--topk", "8"),
    *("--max-cached-blocks", "8", "--n-score", "16", "--n-ctx", "1024", "--n-batch", "128"),
]


def test_record_writes_a_trace_and_the_answer(
    model_path: Path, passkey: Any, llm: Llama, tmp_path: Path
) -> None:
    text, output = tmp_path / "text.txt", tmp_path / "out.trace"
    text.write_bytes(llm.detokenize(passkey[0]))
    args = ["record", "-m", str(model_path), "-f", str(text), "--raw", "-n", "4", "-o", str(output)]
    result = CliRunner().invoke(command(), [*args, *SMALL_OPTIONS, "--temperature", "0"])
    assert result.exit_code == 0, result.output
    trace = read_trace(output)
    assert trace.n_step > 4
    assert trace.header.infllm["n_local"] == 256


def test_record_keeps_what_it_has_when_interrupted(
    model_path: Path, passkey: Any, llm: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, output = tmp_path / "text.txt", tmp_path / "out.trace"
    text.write_bytes(llm.detokenize(passkey[0]))

    def interrupt(self: Any, n_done: int, n_total: int) -> None:
        if n_done > 900:
            raise KeyboardInterrupt

    monkeypatch.setattr("infllm_cpp.cli.terminal.PrefillProgress.update", interrupt)
    args = ["record", "-m", str(model_path), "-f", str(text), "--raw", "-o", str(output)]
    result = CliRunner().invoke(command(), [*args, *SMALL_OPTIONS])
    assert result.exit_code != 0
    assert read_trace(output).n_step >= 1


def test_a_text_that_fits_is_nothing_to_trace(model_path: Path, tmp_path: Path) -> None:
    args = ["record", "-m", str(model_path), "-p", "Hi", "-n", "2", "-o", str(tmp_path / "out.trace")]
    result = CliRunner().invoke(command(), [*args, *SMALL_OPTIONS])
    assert isinstance(result.exception, ValueError)
    assert "no block was selected" in str(result.exception)


def test_bad_slots_are_named(recorded: tuple[Path, Any], tmp_path: Path) -> None:
    for slots in ("", "8,x", "0"):
        with pytest.raises(ValueError, match="is not a list of numbers from 1"):
            commands.report(trace=recorded[0], output=tmp_path / "report.html", slots=slots)
