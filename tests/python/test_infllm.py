"""The method, as Python sees it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from conftest import SMALL
from infllm_cpp import InfLLMConfig, Llama, TraceEvent
from infllm_cpp._sizes import repr_bytes

TEXT = (
    "The memory of a language model is its key-value cache. Most of a long text is not needed to "
    "predict the next token, but which part is needed changes from token to token. "
)


def test_on_equals_off_while_all_tokens_fit(model_path: Path) -> None:
    """Greedy tokens and logits, over a text of several hundred tokens."""
    with Llama(model_path, n_ctx=1024, infllm=None) as off, Llama(model_path, n_ctx=1024) as on:
        assert off.infllm is None
        assert on.infllm is not None

        tokens = off.tokenize(TEXT * 8)
        rows_off = off.eval(tokens, all_logits=True)
        rows_on = on.eval(tokens, all_logits=True)
        assert np.abs(rows_on - rows_off).max() <= 1e-2

        text_off = off(tokens, max_tokens=32, temperature=0)["choices"][0]["text"]
        text_on = on(tokens, max_tokens=32, temperature=0)["choices"][0]["text"]
        assert text_on == text_off


def test_automatic_values_are_filled_in(model_path: Path) -> None:
    with Llama(model_path, n_ctx=16384, infllm=InfLLMConfig(topk=8)) as llm:
        config = llm.infllm
        assert config is not None
        assert (config.n_local, config.max_cached_blocks, config.position) == (1024, 8, "infllm")
        assert (config.search, config.n_repr, config.repr_topk, config.n_score) == ("keys", 8, 8, 16)
    with Llama(model_path, n_ctx=8192) as llm:
        config = llm.infllm
        assert config is not None
        assert config.position == "true"
        assert config.topk == config.max_cached_blocks
        assert (config.search, config.n_repr, config.repr_topk, config.n_score) == ("keys", 16, 4, 16)
    with Llama(model_path, n_ctx=8192, infllm=InfLLMConfig(profile="fast")) as llm:
        config = llm.infllm
        assert config is not None
        assert (config.n_local, config.topk, config.max_cached_blocks) == (1024, 4, 4)  # an 8th, a 32nd
    with Llama(model_path, n_ctx=8192, infllm=InfLLMConfig(repr_topk=12)) as llm:
        config = llm.infllm
        assert config is not None
        assert (config.n_repr, config.repr_topk) == (4, 12)  # parts of at least as many tokens
    with Llama(model_path, n_ctx=8192, infllm=InfLLMConfig(search="queries")) as llm:
        config = llm.infllm
        assert config is not None
        assert (config.search, config.n_repr, config.repr_topk, config.n_score) == ("queries", 1, 4, 32)
    with Llama(model_path, n_ctx=8192, infllm=InfLLMConfig(search="quest")) as llm:
        config = llm.infllm
        assert config is not None
        assert (config.search, config.n_repr, config.repr_topk, config.n_score) == ("quest", 4, 16, 32)
    with Llama(model_path, n_ctx=8192, infllm=InfLLMConfig(search="preselect")) as llm:
        config = llm.infllm
        assert config is not None
        assert (config.search, config.n_repr, config.repr_topk, config.n_score) == ("preselect", 16, 4, 16)


def test_a_budget_is_kept_to(model_path: Path) -> None:
    weights = model_path.stat().st_size
    for budget, most in (("auto", weights), ("60 MiB", 60 << 20), (50_000_000, 50_000_000)):
        with Llama(model_path, n_ctx=8192, infllm=InfLLMConfig(budget=budget)) as llm:
            stats = llm.stats()
            assert stats is not None
            assert 0.85 * most < stats.bytes_resident <= most
    with Llama(model_path, n_ctx=8192, infllm=InfLLMConfig(budget="3000 tokens")) as llm:
        stats = llm.stats()
        assert stats is not None
        assert stats.bytes_resident == 2816 * llm.kv_bytes_per_token()  # whole blocks, and 256 cells
    with Llama(model_path, n_ctx=8192, infllm=InfLLMConfig(profile="exact")) as llm:
        stats = llm.stats()
        assert stats is not None
        assert stats.bytes_resident == 8192 * llm.kv_bytes_per_token()


def test_what_a_budget_cannot_be(model_path: Path) -> None:
    for config, reason in (
        (InfLLMConfig(budget=1000), r"budget = 1000 bytes gives .* needs \d+ at least, \d+ bytes"),
        (InfLLMConfig(budget="60 MiB", topk=4), "budget is given, and what it is divided into, too"),
    ):
        with pytest.raises(ValueError, match=reason):
            Llama(model_path, n_ctx=8192, infllm=config)


@pytest.mark.parametrize(
    ("search", "scores"),
    [("keys", "linear"), ("queries", "linear"), ("queries", "published"), ("quest", "linear")],
)
def test_representative_keys_take_what_info_says(model_path: Path, search: str, scores: str) -> None:
    config = InfLLMConfig(n_local=256, search=search, scores=scores)
    with Llama(model_path, n_ctx=16384, infllm=config) as llm:
        stats = llm.stats()
        assert llm.infllm is not None and stats is not None
        expected = repr_bytes(llm._model, llm.infllm._to_params(), 16384, n_cells=4096)
        assert stats.bytes_repr == expected


def test_what_is_not_resident_is_found(llm: Llama, passkey: tuple[list[int], str]) -> None:
    tokens, key = passkey
    assert llm(tokens, max_tokens=8, temperature=0)["choices"][0]["text"].strip().startswith(key)
    stats = llm.stats()
    assert stats is not None
    assert stats.n_tokens > 1.7 * stats.n_tokens_resident
    assert stats.n_page_in > 0


def test_statistics_add_up(llm: Llama, passkey: tuple[list[int], str]) -> None:
    llm.eval(passkey[0])
    stats = llm.stats()
    assert stats is not None
    assert stats.n_layer == len(stats.layers) == 30
    assert stats.n_tokens == llm.n_tokens
    assert stats.n_tokens_resident < stats.n_tokens
    assert stats.n_slots == 30 * 8
    assert stats.n_selected == stats.n_hit + stats.n_page_in
    assert stats.n_page_in > 0
    for name in ("n_blocks", "bytes_resident", "bytes_store", "n_selected", "bytes_paged_in"):
        assert getattr(stats, name) == sum(getattr(layer, name) for layer in stats.layers), name

    llm.reset_stats()
    stats = llm.stats()
    assert stats is not None
    assert stats.n_selected == 0
    assert stats.n_blocks > 0


def test_the_store_grows_and_the_resident_buffer_does_not(llm: Llama, passkey: tuple[list[int], str]) -> None:
    tokens = passkey[0]
    sizes = []
    for n_tokens in (850, 920, 990):
        llm.prefill(tokens[:n_tokens])
        stats = llm.stats()
        assert stats is not None
        sizes.append((stats.bytes_resident, stats.bytes_store))
    assert sizes[0][0] == sizes[1][0] == sizes[2][0]
    assert sizes[0][1] < sizes[1][1] < sizes[2][1]


def test_the_trace_tells_what_was_selected(llm: Llama, passkey: tuple[list[int], str]) -> None:
    events: list[TraceEvent] = []
    llm.set_trace(events.append)
    llm.eval(passkey[0])
    stats = llm.stats()
    assert stats is not None

    assert len(events) == stats.n_select
    assert sum(len(event.selected) for event in events) == stats.n_selected
    assert sum(event.n_page_in for event in events) == stats.n_page_in
    assert {event.il for event in events} == set(range(30))
    assert len({(event.pos, event.il) for event in events}) == len(events)  # once for each layer and ubatch
    last = events[-1]
    assert len(last.selected) == SMALL.topk
    assert last.scores.argmax() == last.selected[0]

    llm.set_trace(None)
    n_events = len(events)
    llm.eval(llm.tokenize(" And more."))
    assert len(events) == n_events


def test_the_end_of_a_text_is_selected_for_alone(llm: Llama, passkey: tuple[list[int], str]) -> None:
    events: list[TraceEvent] = []
    llm.set_trace(events.append)
    llm.eval(passkey[0])
    assert [event.n_tokens for event in events[-30:]] == [2 * 16] * 30
    assert max(event.n_tokens for event in events) > 32

    # all logits are those of the batches asked for
    events.clear()
    llm.eval(passkey[0][:40], all_logits=True)
    assert {event.n_tokens for event in events} == {40}


def test_layers_between_those_that_search_follow_them(llm: Llama, passkey: tuple[list[int], str]) -> None:
    events: list[TraceEvent] = []
    llm.set_trace(events.append)
    llm.eval(passkey[0])
    selected = [event.selected.tolist() for event in events[-30:]]
    assert [selected[il] for il in range(30)] == [selected[il - il % 3] for il in range(30)]
    assert len({tuple(blocks) for blocks in selected}) > 1


def test_a_full_store_is_a_memory_error(model_path: Path, passkey: tuple[list[int], str]) -> None:
    config = InfLLMConfig(**{**vars(SMALL), "store_max_bytes": 1 << 20})
    tokens, _ = passkey
    with Llama(model_path, n_ctx=1024, n_batch=128, infllm=config) as llm:
        # a text that cannot be held is refused before it is read
        with pytest.raises(MemoryError, match=r"\d+ tokens cannot be held: .*store_max_bytes"):
            llm.eval(tokens)
        assert llm.n_tokens == 0
        with pytest.raises(MemoryError, match="store_max_bytes"):
            for i in range(0, len(tokens), 128):
                llm.eval(tokens[i : i + 128])
        # whole batches are stored or not at all
        assert 0 < llm.n_tokens < len(tokens)
        assert llm.n_tokens % 128 == 0
        assert llm.tokens == tokens[: llm.n_tokens]
        with pytest.raises(MemoryError, match="store_max_bytes"):
            llm(tokens)
        assert llm.n_tokens > 0  # nothing is forgotten for what cannot be held

        assert llm("The capital of France is", max_tokens=4, temperature=0)["choices"][0]["text"].startswith(
            " Paris"
        )


def test_blocks_go_on_in_a_file(first_layers_path: Path, tmp_path: Path) -> None:
    answers = []
    for changes in ({}, {"store_max_bytes": 1 << 16, "store_path": tmp_path}):
        config = InfLLMConfig(**{**vars(SMALL), **changes})
        with Llama(first_layers_path, n_ctx=2048, n_batch=128, infllm=config) as llm:
            llm.eval((llm.tokenize("The grass is green. The sky is blue. ") * 200)[:1500])
            answers.append(llm.logits)
            stats = llm.stats()
            assert stats is not None
            assert (stats.bytes_store_file > 0) == bool(changes)
            assert (stats.n_page_in_file > 0) == (stats.us_page_in_file > 0) == bool(changes)
            assert (stats.us_page_in > 0) != bool(changes)
            assert stats.n_page_in_file == sum(layer.n_page_in_file for layer in stats.layers)
            assert list(tmp_path.iterdir()) == []  # the file has no name
    assert np.array_equal(*answers)
    config = InfLLMConfig(store_path=tmp_path / "none")
    with pytest.raises(RuntimeError, match=r"store_path = .*none"):
        Llama(first_layers_path, n_ctx=2048, infllm=config)


def test_the_store_can_have_a_smaller_type(model_path: Path, passkey: tuple[list[int], str]) -> None:
    tokens, key = passkey
    sizes = {}
    for name in ("auto", "q8_0", "q4_0"):
        config = InfLLMConfig(**{**vars(SMALL), "type_store": name})
        with Llama(model_path, n_ctx=1024, n_batch=128, infllm=config) as llm:
            assert key in llm(tokens, max_tokens=8, temperature=0)["choices"][0]["text"]
            stats = llm.stats()
            assert stats is not None
            sizes[name] = stats.bytes_store_kv / stats.n_blocks
    assert sizes["q8_0"] == sizes["auto"] * 34 / 64
    assert sizes["q4_0"] == sizes["auto"] * 18 / 64
    with pytest.raises(ValueError, match="type_store = q4_0 is for type_k = type_v = f16"):
        Llama(model_path, n_ctx=1024, n_batch=128, infllm=config, type_k="q8_0")


def test_the_environment_variable_does_not_matter_here(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_INFLLM", "1")
    with Llama(model_path, n_ctx=256, infllm=None) as llm:
        assert llm.infllm is None
        assert llm.stats() is None
    with Llama(model_path, n_ctx=1024, infllm=SMALL) as llm:
        assert llm.infllm is not None
        assert llm.infllm.n_local == SMALL.n_local
    assert os.environ["LLAMA_INFLLM"] == "1"
