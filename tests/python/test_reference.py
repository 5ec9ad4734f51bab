"""The C++ path computes what a NumPy reference of the method computes, deliberate deviations apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infllm_cpp import Llama

pytest.importorskip("gguf")

import infllm_reference as reference
import limits
from compare import Run, Selected, compare, config, prose, run_ours, run_reference
from dense import Dense
from gguf_copy import copy_gguf
from infllm_reference import OURS, OURS_BY_KEYS, PUBLISHED, Budget, Model, Switches

import tiny_models

BUDGET = Budget(
    n_init=32,
    n_local=256,
    block_size=32,
    topk=6,
    max_cached_blocks=8,
    repr_topk=4,
    n_repr=2,
    n_score=16,
    chunk=128,
)
N_TOKENS = 1152
N_GREEDY = 8


@pytest.fixture(scope="module")
def float_path(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The demo model with float32 weights, so that activations are not quantised either."""
    path = tmp_path_factory.mktemp("reference") / "model.gguf"
    copy_gguf(model_path, path, dequantise=True)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def model(float_path: Path) -> Model:
    return Model.load(float_path)


@pytest.fixture(scope="module")
def tokens(shared_llm: Llama) -> list[int]:
    return prose(shared_llm, N_TOKENS)


@pytest.fixture(scope="module")
def ours(float_path: Path, tokens: list[int]) -> Run:
    return run_ours(float_path, tokens, BUDGET, "true", N_GREEDY)


def test_a_text_that_fits_has_the_logits_of_the_reference(
    float_path: Path, model: Model, tokens: list[int]
) -> None:
    n = 384
    with Llama(
        float_path, n_ctx=N_TOKENS, n_batch=128, n_ubatch=128, n_threads=1, infllm=config(BUDGET, "true")
    ) as llm:
        logits = llm.eval(tokens[:n], all_logits=True)
    expected = reference.Reference(model, BUDGET, OURS, n).eval(tokens[:n])

    # ours keeps K and V in half precision; logits have a standard deviation of about 5
    assert np.abs(logits - expected).max() < 0.05


def test_within_the_local_window_all_variants_are_plain_attention(model: Model, tokens: list[int]) -> None:
    n = BUDGET.n_local
    expected = reference.Reference(model, BUDGET, OURS, n).eval(tokens[:n])
    published = reference.Reference(model, BUDGET, PUBLISHED, n).eval(tokens[:n])

    np.testing.assert_allclose(published, expected, atol=1e-3)


def test_with_all_deviations_the_reference_does_what_ours_does(
    model: Model, tokens: list[int], ours: Run
) -> None:
    expected = run_reference(model, tokens, BUDGET, OURS, N_GREEDY)
    res = compare(ours, expected, N_TOKENS, BUDGET)

    assert res.overlap > 0.98
    assert res.ratio == pytest.approx(1, abs=0.002)
    assert res.same_top > 0.98
    assert ours.greedy == expected.greedy


def test_the_published_method_selects_mostly_the_same_and_predicts_as_well(
    model: Model, tokens: list[int], ours: Run
) -> None:
    expected = run_reference(model, tokens, BUDGET, PUBLISHED, 0)
    res = compare(ours, expected, N_TOKENS, BUDGET)

    assert res.overlap > res.chance + 0.2
    assert res.overlap > 0.7
    assert res.ratio == pytest.approx(1, abs=0.03)


def test_the_faithful_mode_is_the_published_method(float_path: Path, model: Model, tokens: list[int]) -> None:
    # both begin to leave blocks out in the same chunk
    budget = replace(BUDGET, topk=8)
    faithful = run_ours(float_path, tokens, budget, "faithful", N_GREEDY)
    published = run_reference(model, tokens, budget, PUBLISHED, 0)
    res = compare(faithful, published, N_TOKENS, budget)
    assert res.overlap > 0.8
    assert res.ratio == pytest.approx(1, abs=0.03)

    # the positions are all that differs
    same = run_reference(model, tokens, budget, replace(PUBLISHED, position="true"), N_GREEDY)
    res = compare(faithful, same, N_TOKENS, budget)
    assert res.overlap > 0.98
    assert res.ratio == pytest.approx(1, abs=0.002)
    assert faithful.greedy == same.greedy


def test_search_by_keys_is_that_of_the_reference(float_path: Path, model: Model, tokens: list[int]) -> None:
    ours = run_ours(float_path, tokens, BUDGET, "keys", N_GREEDY)
    expected = run_reference(model, tokens, BUDGET, OURS_BY_KEYS, N_GREEDY)
    res = compare(ours, expected, N_TOKENS, BUDGET)

    assert res.overlap > 0.98
    assert res.ratio == pytest.approx(1, abs=0.002)
    assert res.same_top > 0.98
    assert ours.greedy[:4] == expected.greedy[:4]  # then there is a near tie

    alone = run_reference(model, tokens, BUDGET, replace(OURS_BY_KEYS, agree="layer"), 0)
    assert compare(ours, alone, N_TOKENS, BUDGET).overlap < 0.9
    here = run_reference(model, tokens, BUDGET, replace(OURS_BY_KEYS, after="none"), 0)
    assert compare(ours, here, N_TOKENS, BUDGET).overlap < 0.95


def test_a_short_chunk_is_searched_for_by_short_sub_chunks_too(
    float_path: Path, model: Model, tokens: list[int]
) -> None:
    # representative keys of 4 tokens: sub-chunks of 16 and of 8, where a chunk is as short as a question
    budget = replace(BUDGET, n_repr=8, chunk=32)
    ours = run_ours(float_path, tokens, budget, "keys", 0)
    expected = run_reference(model, tokens, budget, OURS_BY_KEYS, 0)
    assert compare(ours, expected, N_TOKENS, budget).overlap > 0.98

    long = run_reference(model, tokens, budget, replace(OURS_BY_KEYS, lengths="one"), 0)
    assert compare(ours, long, N_TOKENS, budget).overlap < 0.9


def test_positions_of_slots_are_those_of_the_reference(
    float_path: Path, model: Model, tokens: list[int]
) -> None:
    ours = run_ours(float_path, tokens, BUDGET, "infllm", 0)
    expected = run_reference(model, tokens, BUDGET, replace(OURS, position="slots"), 0)
    res = compare(ours, expected, N_TOKENS, BUDGET)

    assert res.overlap > 0.97
    assert res.ratio == pytest.approx(1, abs=0.004)


def first_layer(model: Model, tokens: list[int], switches: Switches) -> Selected:
    """Its input is the text alone: it shows scoring, and nothing that follows from other selections."""
    model = replace(model, layers=model.layers[:1], output=model.output[:1])
    ref = reference.Reference(model, BUDGET, switches, len(tokens))
    ref.eval(tokens)
    return {(s.layer, s.pos): set(s.blocks) for s in ref.selections}


def test_the_first_layer_selects_the_same_blocks(model: Model, tokens: list[int], ours: Run) -> None:
    expected = first_layer(model, tokens, OURS)

    assert len(expected) > 0
    assert expected == {key: ours.selected[key] for key in expected}


@pytest.mark.parametrize(
    "switches",
    [
        replace(OURS, scores="softmax"),
        replace(OURS, followers="window"),
        replace(OURS, heads="query"),
        replace(OURS, parts="one"),
        replace(OURS, query="mean"),
        OURS_BY_KEYS,
    ],
    ids=["scores", "followers", "heads", "parts", "query", "search"],
)
def test_without_one_deviation_the_first_layer_selects_others(
    model: Model, tokens: list[int], ours: Run, switches: Switches
) -> None:
    expected = first_layer(model, tokens, switches)

    assert expected != {key: ours.selected[key] for key in expected}


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_limits_are_those_of_the_models_attention(arch: str, tmp_path: Path) -> None:
    tiny_models.write(arch, tmp_path / "tiny.gguf", n_layer=6)
    model = Dense(tmp_path / "tiny.gguf")
    tokens = np.random.default_rng(0).integers(0, tiny_models.N_VOCAB, 256).tolist()

    with Llama(tmp_path / "tiny.gguf", n_ctx=256, n_threads=1, infllm=None) as llm:
        logits = llm.eval(tokens, all_logits=True)[128:]
    exact = limits.last_half(model, tokens, None, n_cells=128)
    found = model.log_probs(exact)

    window = limits.last_half(model, tokens, limits.Choice(0), n_cells=128)
    every = limits.last_half(model, tokens, limits.Choice(1, block_size=16), n_cells=10_000)

    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    error = np.abs(found - expected).max()
    assert 50 * error < np.abs(found - model.log_probs(window)).max()
    assert limits.divergence(model, exact, window)[0].mean() > 0
    np.testing.assert_array_equal(every, exact)
