"""InfLLMConfig: ranges, and what becomes of None."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from infllm_cpp import InfLLMConfig, _core
from infllm_cpp.config import CHOICES


def test_the_defaults_are_the_librarys() -> None:
    params = _core.InfLLMParams()
    config = InfLLMConfig()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in CHOICES:
            assert CHOICES[field.name].index(value) == getattr(params, field.name) == 0
        else:
            expected = 0 if value in (None, "auto") else value
            assert expected == (getattr(params, field.name) or 0), field.name


def test_a_config_survives_the_way_through_the_c_api() -> None:
    config = InfLLMConfig(
        1, 2, 3, 4, 5, 6, 7, "infllm", 8, "device", 9, "topk", "published", 3, "keys", "/tmp"
    )
    assert InfLLMConfig._from_params(config._to_params()) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_init", -1),
        ("n_local", 0),
        ("block_size", 2**32),
        ("max_cached_blocks", -4),
        ("store_max_bytes", 2**64),
        ("position", "far"),
        ("paging", "gpu"),
        ("attend", "all"),
        ("scores", "softmax"),
        ("pinned_max_bytes", 0),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} = .*{value}.*use "):
        InfLLMConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("budget", "n_bytes"),
    [
        ("auto", 0),
        (123, 123),
        ("123", 123),
        ("2 KiB", 2048),
        ("1.5g", 3 << 29),
        ("64MB", 64 << 20),
        ("300 tokens", 3000),
        (2**64 - 1, 2**64 - 1),
    ],
)
def test_budgets_are_bytes_or_tokens(budget: int | str, n_bytes: int) -> None:
    assert InfLLMConfig(budget=budget)._to_params(bytes_per_token=10).budget == n_bytes


@pytest.mark.parametrize("name", ["budget", "reserve"])
@pytest.mark.parametrize(
    "value", ["", "much", "-1", -1, "1 KiB more", "2 tokens 3", 2**64, "1e9", 0, "0.2 tokens"]
)
def test_sizes_that_are_none_are_named(name: str, value: int | str) -> None:
    with pytest.raises(ValueError, match=f"{name} = .* (is no size|is out of range)"):
        InfLLMConfig(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"{name} = 1.5"):
        InfLLMConfig(**{name: 1.5})  # type: ignore[arg-type]


def test_tokens_need_a_model() -> None:
    for budget in ("8192 tokens", "8192 TOKENS"):
        with pytest.raises(ValueError, match=f"budget = '{budget}' is no number of bytes"):
            InfLLMConfig(budget=budget)._to_params()
    with pytest.raises(ValueError, match="out of range"):
        InfLLMConfig(budget=f"{10**18} tokens")._to_params(bytes_per_token=1000)


def test_what_is_left_free_is_in_bytes() -> None:
    assert InfLLMConfig(reserve="1 GiB")._to_params().reserve == 1 << 30
    with pytest.raises(ValueError, match="reserve = '5 tokens' is not in bytes"):
        InfLLMConfig(reserve="5 tokens")


def test_store_path() -> None:
    assert InfLLMConfig(store_path=Path("~/blocks")).store_path == str(Path.home() / "blocks")
    for path in ("", "a" * 512):
        with pytest.raises(ValueError, match="store_path = "):
            InfLLMConfig(store_path=path)
    with pytest.raises(TypeError):
        InfLLMConfig(store_path=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [1.5, "16", True])
def test_a_value_that_is_no_integer_is_named(value: object) -> None:
    with pytest.raises(TypeError, match=r"^topk = .* is not an integer"):
        InfLLMConfig(topk=value)  # type: ignore[arg-type]
