"""``n_ctx=0``: a context that follows its text, as far as memory goes."""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

import make_gguf
from conftest import SMALL
from infllm_cpp import Llama, _core, _sizes, _system
from infllm_cpp._following import FollowingContext
from infllm_cpp._sizes import ContextSizes

N_CTX_TRAIN = 1024
N_CTX_LONG = 2**18  # what follows the training length
# resident are 768 tokens
TEXT = [3 + i * i % 300 for i in range(1500)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, and a short training length."""
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    shape = dataclasses.replace(make_gguf.SHAPES["small"], n_ctx_train=N_CTX_TRAIN)
    make_gguf.write(shape, "small", path, gguf.GGMLQuantizationType.F16, seed=0)
    return path


def load(path: Path, n_ctx: int) -> Llama:
    return Llama(path, n_ctx=n_ctx, n_batch=128, n_threads=1, infllm=SMALL)


def load_like(llm: Llama) -> Llama:
    return load(Path(llm.model_path), 0)


@pytest.fixture
def llm(path: Path) -> Iterator[Llama]:
    with load(path, 0) as llm:
        yield llm


def logits_of(llm: Llama, tokens: list[int]) -> bytes:
    llm.prefill(tokens)
    return llm.logits.tobytes()


def position(llm: Llama) -> str:
    assert llm.infllm is not None
    return llm.infllm.position


def test_texts_within_the_training_length_have_true_positions(llm: Llama, path: Path) -> None:
    with load(path, N_CTX_TRAIN) as other:
        assert logits_of(llm, TEXT[:500]) == logits_of(other, TEXT[:500])
    assert llm.n_ctx() > N_CTX_LONG
    assert position(llm) == "true"


def test_longer_texts_are_read_as_by_a_longer_context(llm: Llama, path: Path) -> None:
    with load(path, N_CTX_LONG) as other:
        assert logits_of(llm, TEXT) == logits_of(other, TEXT)
    assert position(llm) == "infllm"
    # this prompt begins as the last one, which is reused
    assert llm.prefill([*TEXT, 7]) >= len(TEXT) - 128


def test_what_was_read_before_makes_no_difference(llm: Llama) -> None:
    short = logits_of(llm, TEXT[:500])
    long = logits_of(llm, TEXT)
    assert logits_of(llm, TEXT[:500]) == short
    llm.reset()
    llm.eval(TEXT[:500])
    assert llm.logits.tobytes() == short
    assert logits_of(llm, TEXT) == long


def test_a_text_that_grows_is_read_again(llm: Llama) -> None:
    for i in range(0, len(TEXT), 500):
        llm.eval(TEXT[i : i + 500])
        assert llm.tokens == TEXT[: i + 500]
    assert position(llm) == "infllm"


def test_an_answer_goes_on_beyond_the_training_length(llm: Llama) -> None:
    prompt = TEXT[:400]
    options = {"max_tokens": 700, "temperature": 0}
    first = llm.create_completion(prompt, **options)  # type: ignore[call-overload]
    assert first["usage"]["completion_tokens"] == 700
    assert llm.n_tokens > N_CTX_TRAIN
    again = llm.create_completion(prompt, **options)  # type: ignore[call-overload]
    assert again["choices"] == first["choices"]


def test_traces_go_on(llm: Llama) -> None:
    events: list[int] = []
    llm.set_trace(lambda event: events.append(event.pos))
    llm.prefill(TEXT)
    assert max(events) > N_CTX_TRAIN


def test_an_interrupt_while_a_session_is_loaded(
    llm: Llama, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "short.session"
    llm.prefill(TEXT[:400])
    llm.save_session(file)
    llm.eval(TEXT[400:420])
    expected = llm.logits.tobytes()
    llm.prefill(TEXT)
    resize = FollowingContext.resize

    def interrupted(self: FollowingContext, n_tokens: int, shrink: bool) -> object:
        llm.interrupt()
        return resize(self, n_tokens, shrink)

    monkeypatch.setattr(FollowingContext, "resize", interrupted)
    with pytest.raises(InterruptedError):
        llm.load_session(file)
    monkeypatch.undo()
    # one or the other, never a mixture
    assert llm.tokens == TEXT[:400]
    llm.eval(TEXT[400:420])
    assert llm.logits.tobytes() == expected


def test_a_session_dir_hands_an_interrupt_on(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(path, 0) as writer:
        writer.prefill(TEXT)
        writer.save_session(tmp_path / "long.session")
    with Llama(path, n_batch=128, n_threads=1, infllm=SMALL, session_dir=tmp_path) as llm:
        resize = FollowingContext.resize

        def interrupted(self: FollowingContext, n_tokens: int, shrink: bool) -> object:
            llm.interrupt()
            return resize(self, n_tokens, shrink)

        monkeypatch.setattr(FollowingContext, "resize", interrupted)
        with pytest.raises(InterruptedError), warnings.catch_warnings():
            warnings.simplefilter("error")
            llm.prefill([*TEXT, 5, 6, 7])


def test_sessions_of_another_kind_of_context_are_left_alone(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, n in (("long", len(TEXT)), ("short", 450)):
        with load(path, 0) as writer:
            writer.prefill(TEXT[:n])
            writer.save_session(tmp_path / f"{name}.session")
    loaded: list[str] = []
    load_one = Llama._load

    def load_and_tell(self: Llama, name: Path, *rest: Any) -> None:
        loaded.append(name.stem)
        load_one(self, name, *rest)

    monkeypatch.setattr(Llama, "_load", load_and_tell)
    with Llama(path, n_batch=128, n_threads=1, infllm=SMALL, session_dir=tmp_path) as llm:
        assert llm.prefill([*TEXT[:440], 5]) > 300
        assert llm.prefill([*TEXT[:1400], 5]) > 1200
        assert llm.prefill([*TEXT[:440], 6]) > 300
    assert loaded == ["short", "long", "short"]


def test_memory_for_one_context_is_enough(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    with load_like(llm) as other:
        other.prefill(TEXT[:400])
        other.eval(TEXT[400:])
        expected = other.logits.tobytes()
    llm.prefill(TEXT[:400])
    make, alive = llm._following._make, []  # type: ignore[union-attr]

    def scarce(size: int) -> _core.Context:
        if llm._ctx_or_none is not None:
            raise MemoryError("no room for two")
        alive.append(size)
        return make(size)

    monkeypatch.setattr(llm._following, "_make", scarce)
    llm.eval(TEXT[400:])
    assert alive == [N_CTX_LONG]
    assert position(llm) == "infllm"
    assert llm.tokens == TEXT
    assert llm.logits.tobytes() == expected


def test_a_token_does_not_copy_those_before_it(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    llm.prefill(TEXT[:400])
    copies: list[int] = []
    monkeypatch.setattr(Llama, "tokens", property(lambda self: copies.append(1) or list(self._tokens)))
    for token in TEXT[400:410]:
        llm.eval([token])
    assert not copies


def test_where_there_is_no_memory_the_text_stays(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    llm.prefill(TEXT[:400])
    make = llm._following._make  # type: ignore[union-attr]

    def none_for_more(size: int) -> _core.Context:
        if size > N_CTX_TRAIN:
            raise MemoryError("no room for that")
        return make(size)

    monkeypatch.setattr(llm._following, "_make", none_for_more)
    with pytest.raises(MemoryError, match="no room for that"):
        llm.eval(TEXT[400:])
    assert llm.tokens == TEXT[:400]
    assert position(llm) == "true"
    llm.eval(TEXT[400:450])
    assert llm.tokens == TEXT[:450]


def test_what_is_closed_has_no_model(llm: Llama) -> None:
    model = weakref.ref(llm._model)
    llm.close()
    assert model() is None


def test_the_limit_follows_from_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # K and V: 4 layers, 2 heads of 64, 2 bytes
    per_token = 4 * 2 * 2 * 64 * 2
    monkeypatch.setattr(_sizes, "available_memory", lambda: 20 << 20)
    with load(path, 0) as llm:
        assert 1024 < llm.n_ctx() < (20 << 20) // per_token * 7 // 8
        with pytest.raises(ValueError, match=f"more than n_ctx = {llm.n_ctx()}"):
            llm.prefill(TEXT * 10)

    monkeypatch.setattr(_sizes, "available_memory", lambda: None)
    with Llama(path, n_batch=128, infllm=dataclasses.replace(SMALL, store_max_bytes=600 * per_token)) as llm:
        assert 768 <= llm.n_ctx() <= 32 + 256 + 600
        llm.prefill((TEXT * 2)[: llm.n_ctx()])


def test_a_window_that_leaves_no_room_for_positions_ends_at_the_training_length(path: Path) -> None:
    with Llama(path, n_batch=128, infllm=dataclasses.replace(SMALL, n_local=800)) as llm:
        assert llm.n_ctx() == N_CTX_TRAIN


def test_plain_contexts_have_the_training_length(path: Path) -> None:
    with Llama(path, infllm=None) as llm:
        assert llm.n_ctx() == N_CTX_TRAIN


def test_sizes_grow_in_steps() -> None:
    sizes = ContextSizes(n_ctx_train=8192, limit=900_000)
    wanted = [0, 8192, 8193, 262_145, 600_000, 2_000_000]
    assert [sizes.size(n) for n in wanted] == [8192, 8192, 262_144, 524_288, 900_000, 900_000]
    # memory for less than the training length, and a training length beyond the first step
    assert ContextSizes(131_072, 5000).size(1) == 5000
    assert ContextSizes(1_000_000, 3_000_000).size(1_000_001) == 2_000_000


def test_memory_that_a_container_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 200000\n")
    monkeypatch.setattr(_system, "_CGROUP", tmp_path)
    assert _system.available_memory() == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    available = _system.available_memory()
    assert available is None or available > 1_000_000
