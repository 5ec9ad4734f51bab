"""Files of others, changed at random: one is refused by a sentence (ValueError), or what is read is sound."""

from __future__ import annotations

import json
import random
import struct
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import mutations
import tiny_models
from conftest import SMALL, Run
from infllm_cpp import Llama
from infllm_cpp._sessions import SessionNotes
from infllm_cpp._stored import StoredTokens
from infllm_cpp.cli.conversation import Conversation
from infllm_cpp.cli.options import RunOptions
from infllm_cpp.evaluation.runner import key_of, read_results
from infllm_cpp.trace import TraceHeader, TraceWriter, read_trace
from infllm_cpp.trace.analysis import analyse
from test_trace import Event

N_RUNS = 500
DEEP = "[" * 5000  # more than a parser that calls itself can take

NOTES = SessionNotes(
    model_path="/models/a.gguf",
    model_name="A",
    model_id="0123",
    n_ctx=4096,
    config={**asdict(SMALL)},
    types=["f16", "f16"],
    asked={"n_ctx": 4096, "n_local": 256},
    texts=[[0, 20, 16, 20], [25, 30]],
    rope={"rope_freq_scale": 0.5},
    data={"messages": [{"role": "user", "content": "What?"}], "files": ""},
    checkpoints={20: b"x" * 40},
)


def notes_of(values: Any, rest: bytes = b"x" * 40) -> bytes:
    text = json.dumps(values).encode()
    return len(text).to_bytes(8, "little") + text + rest


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_models.write("llama", path)
    return path


def make(path: Path) -> Llama:
    return Llama(path, n_ctx=1024, n_batch=128, infllm=SMALL)


# -- sessions ----------------------------------------------------------------------------------------


def test_notes_of_a_session() -> None:
    rng = random.Random(1)
    values = json.loads(NOTES.encode()[8:-40])
    assert SessionNotes.decode(notes_of(values)) == NOTES
    n_read = 0
    for i in range(N_RUNS):
        data = mutations.of_bytes(NOTES.encode(), rng) if i % 2 else notes_of(mutations.of_value(values, rng))
        try:
            notes = SessionNotes.decode(data)
        except ValueError as err:
            assert "was not saved by this package" in str(err)
            continue
        n_read += 1
        assert len(notes.types) == 2 and 0 < notes.n_ctx < 2**31
        stored = StoredTokens.of([1, 2, 3], notes.texts)
        assert stored.reusable([1, 2, 3, 4], 1, lambda _, end: [end])[0] <= 3
        if Conversation.is_data(notes.data):
            chat = Conversation.from_data(notes.data)
            assert chat.n_questions() <= len(chat.asked("Why?"))
    assert N_RUNS / 10 < n_read < N_RUNS  # some changes do not matter
    for text in (DEEP, '{"checkpoints": [[1e999, 1]]}', '{"checkpoints": [[1, 1]], "changes": ' + DEEP):
        with pytest.raises(ValueError, match="was not saved by this package"):
            SessionNotes.decode(len(text).to_bytes(8, "little") + text.encode())


def test_a_session_does_not_choose_servers_or_devices(tiny_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    options = RunOptions()
    with make(tiny_path) as llm:
        llm.eval([1, 2, 3])
        llm._asked.update(
            {
                "n_score": 8,
                "rpc": ["192.0.2.1:50052"],
                "device": ["CUDA0"],
                "n_gpu_layers": 99,
                "verbose": True,
                "no_infllm": True,
                "store_path": str(tmp_path),
            }
        )
        llm.save_session(path)
    taken = options.for_session(path)
    assert taken.n_score == 8 and taken.model == str(tiny_path)
    for name in ("rpc", "device", "n_gpu_layers", "verbose", "no_infllm", "store_path"):
        assert getattr(taken, name) == getattr(options, name), name


def test_tokens_that_the_model_has_not(tiny_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    with make(tiny_path) as llm:
        llm.eval([1, 2, 3])
        notes = llm._notes(None).encode()
        for token in (-1, llm.n_vocab(), 2**31 - 1):
            llm._ctx.save_session(str(path), [1, 2, token], notes)
            with pytest.raises(ValueError, match="is damaged: it has tokens that the model has not"):
                llm.load_session(path)
            assert llm.tokens == [1, 2, 3]
        llm.eval([4])


def test_what_a_file_says_cannot_move_the_cursor(tiny_path: Path, tmp_path: Path, infllm: Run) -> None:
    path = tmp_path / "a.session"
    with make(tiny_path) as llm:
        llm.eval([1, 2, 3])
        notes = llm._notes(None)
        notes.model_name = "a\x1b[2Jmodel"
        notes.model_id = "another"
        llm._ctx.save_session(str(path), llm.tokens, notes.encode())
    shown = infllm("info", str(path))
    assert (shown.returncode, "\x1b" in shown.stdout) == (0, False), shown.stderr
    assert "a\N{SYMBOL FOR ESCAPE}[2Jmodel" in shown.stdout
    refused = infllm("run", "-m", str(tiny_path), "--session", str(path), "--raw", "-p", "x")
    assert refused.returncode == 1
    assert "was saved with another model" in refused.stderr and "\x1b" not in refused.stderr


# -- traces ------------------------------------------------------------------------------------------


def trace_of(values: Any, steps: bytes) -> bytes:
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return b"INFLLM\0\1" + struct.pack("<I", len(text)) + text + steps


def test_traces(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    header = TraceHeader("m", 3, 1024, 128, 512.0, {"topk": 2, "max_cached_blocks": 4})
    with TraceWriter(path, header) as writer:
        for pos in range(500, 530):
            for il in (0, 2):
                writer(Event(il, pos, [pos % 7, 10 + pos % 5]))  # type: ignore[arg-type]
    good = path.read_bytes()
    steps = good[12 + struct.unpack("<I", good[8:12])[0] :]
    assert trace_of(asdict(header), steps) == good

    rng = random.Random(1)
    n_read = 0
    for i in range(N_RUNS):
        bad = (
            trace_of(mutations.of_value(asdict(header), rng), steps)
            if i % 3 == 0
            else trace_of(asdict(header), mutations.of_bytes(steps, rng))
            if i % 3 == 1
            else mutations.of_bytes(good, rng)
        )
        path.write_bytes(bad)
        try:
            trace = read_trace(path)
        except ValueError as err:
            assert str(path) in str(err)
            continue
        n_read += 1
        assert trace.selected.min() >= -1 and (trace.selected.max((1, 2)) < trace.n_blocks).all()
        if i % 10 == 0:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # numbers that do not fit
                analyse(trace, simulated=False)
    assert n_read > N_RUNS / 10


def test_a_trace_that_asks_for_more_memory_than_it_has_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    header = asdict(TraceHeader("m", 65536, 1024, 128, 512.0))
    many = [struct.pack("<IIIH3H", 0, 1, 100, 1, il, 1, 0) + b"\0\0" for il in range(300)]
    wide = struct.pack("<IIIH3H", 0, 1, 100, 1, 0, 60_000, 0) + bytes(2 * 60_000)
    path.write_bytes(trace_of(header, wide + b"".join(many)))
    with pytest.raises(ValueError, match="read it step by step"):
        read_trace(path)
    for pos, n_tokens, n_blocks in ((2**31, 1, 9), (2**31 - 2, 2, 9), (0, 0, 9), (0, 1, 2**31)):
        path.write_bytes(trace_of(header, struct.pack("<IIIH3HI", pos, n_tokens, n_blocks, 1, 0, 1, 0, 0)))
        with pytest.raises(ValueError, match="is not a step"):
            read_trace(path)
    path.write_bytes(trace_of(DEEP.encode(), b""))
    with pytest.raises(ValueError, match="its header cannot be read"):
        read_trace(path)


# -- results -----------------------------------------------------------------------------------------


def test_results(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    result = {"model": "a", "task": "passkey", "method": "full", "config": {"topk": 8}, "length": 4096}
    rng = random.Random(1)
    good = [json.dumps({**result, "seed": seed}) for seed in range(5)]
    for _ in range(N_RUNS):
        lines = list(good)
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(mutations.of_value(json.loads(lines[at]), rng))
        other = rng.randrange(len(lines))
        lines[other] = mutations.of_bytes(lines[other].encode(), rng).decode(errors="replace")
        path.write_text("\n".join([*lines, DEEP]), encoding="utf-8")
        results = read_results(path)
        # the others are as they were
        assert {key_of(r) for r in results} >= {
            key_of(json.loads(line)) for i, line in enumerate(good) if i not in (at, other)
        }
