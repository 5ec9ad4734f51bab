"""`infllm info` promises what `infllm run` does, and refuses what it refuses, with the same reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import tiny_models
from infllm_cpp.cli.info import print_info
from infllm_cpp.cli.options import RunOptions


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of models of all architectures."""
    folder = tmp_path_factory.mktemp("models")
    for arch in tiny_models.ARCHITECTURES:
        tiny_models.write(arch, folder / f"{arch}.gguf")
    return {arch: str(folder / f"{arch}.gguf") for arch in tiny_models.ARCHITECTURES}


def run(options: RunOptions) -> str:
    """What making the context says, and reading a text; "" if it works."""
    try:
        with options.load() as llm:
            llm.prefill([5] * 300)
    except Exception as err:
        return str(err)
    return ""


def info(options: RunOptions, capsys: pytest.CaptureFixture[str]) -> str:
    """What `infllm info` says against the context; "" if nothing."""
    try:
        print_info(options)
    except Exception as err:
        return str(err)
    rows = dict(re.findall(r"^(\S.*?)  +(.*)$", capsys.readouterr().out, re.MULTILINE))
    value: str = rows["plain llama.cpp" if options.no_infllm else "InfLLM memory"]
    return value.removeprefix("not possible: ") if value.startswith("not possible") else ""


REASONS = {
    "llama": "",
    "gemma3": 'the architecture "gemma3": no layer of it attends to all tokens',
    "mamba": 'the architecture "mamba": it has no attention',
    "deepseek2": "",
}


@pytest.mark.parametrize("arch", tiny_models.ARCHITECTURES)
def test_architectures(models: dict[str, str], arch: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = RunOptions(model=models[arch])
    said = info(options, capsys)
    assert said == run(options)
    assert said.endswith(REASONS[arch])
    assert bool(said) == bool(REASONS[arch])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_ctx": 512},
        {"n_ctx": 4096},
        {"n_ctx": 4096, "n_local": 900},
        {"n_ctx": 4096, "n_local": 1000},
        {"n_ctx": 4096, "n_local": 900, "position": "true"},
        {"n_ctx": -1},
        {"n_batch": 0},
        {"n_ubatch": 256, "n_local": 128},
        {"n_ubatch": 0},
        {"n_ubatch": 512, "n_batch": 64},
        {"block_size": 5000},
        {"topk": 3, "max_cached_blocks": 2},
        {"repr_topk": 100},
        {"n_repr": 3},
        {"n_repr": 4, "repr_topk": 16},
        {"n_score": 4000},
        {"position": "far"},
        {"attend": "topk", "topk": 1, "max_cached_blocks": 4},
        {"scores": "published"},
        {"scores": "published", "search": "keys"},
        {"search": "quest", "repr_topk": 3},
        {"scores": "published", "paging": "device"},
        {"paging": "device"},
        {"type_k": "q8_0", "type_v": "q4_0"},
        {"type_k": "q5"},
        {"no_infllm": True},
        {"no_infllm": True, "type_k": "q8_0", "type_v": "q4_0"},
        {"no_infllm": True, "n_ctx": 4096},
        {"store_max_bytes": 0},
        {"store_max_bytes": 1},
    ],
    ids=str,
)
def test_parameters(
    models: dict[str, str], changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    options = RunOptions(model=models["llama"], n_threads=1, **changes)
    said, done = info(options, capsys), run(options)
    if "store_max_bytes = 0.0" in done or "n_ctx = 512" in done:  # reading a text is another matter
        done = ""
    assert said == done


def test_a_store_is_compared_with_the_memory_there_is(
    models: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("_sizes", "cli.info"):
        monkeypatch.setattr(f"infllm_cpp.{module}.available_memory", lambda: 10 << 20)
    print_info(RunOptions(model=models["llama"], n_ctx=100_000))
    out = capsys.readouterr().out
    # 512 bytes per token
    assert "48.7 MiB in the store, for n_ctx = 100,000" in out
    assert re.search(r"memory +10.0 MiB available: room for 1\d,\d{3} tokens: n_ctx = 100,000 is more", out)

    print_info(RunOptions(model=models["llama"], n_ctx=10_000))
    assert re.search(r"memory +10.0 MiB available: room for 1\d,\d{3} tokens\n", capsys.readouterr().out)

    print_info(RunOptions(model=models["llama"], n_ctx=10_000, store_max_bytes=1 << 20))
    assert re.search(r"store_max_bytes = 1.0 MiB: room for 2,\d{3} tokens: n_ctx", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("llama", {}),
        ("llama", {"type_k": "q8_0", "type_v": "q4_0"}),
        ("llama", {"type_store": "q8_0", "n_repr": 4}),
        ("smollm2", {}),
    ],
    ids=str,
)
def test_a_full_context_takes_what_was_said(
    models: dict[str, str],
    first_layers_path: Path,
    model: str,
    changes: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(first_layers_path) if model == "smollm2" else models[model]
    options = RunOptions(model=path, n_ctx=4096, n_threads=1, profile="fast", **changes)
    print_info(options)
    said = dict(
        (what, float(number) * {"KiB": 2**10, "MiB": 2**20}[unit])
        for number, unit, what in re.findall(
            r"([\d.]+) (KiB|MiB) (resident|of representative keys|in the store)",
            capsys.readouterr().out.split("InfLLM memory")[1],
        )
    )
    with options.load() as llm:
        llm.prefill([5] * 4096)
        stats = llm.stats()
    assert stats is not None
    assert said["resident"] == pytest.approx(stats.bytes_resident, rel=0.05)
    assert said["of representative keys"] == pytest.approx(stats.bytes_repr, rel=0.05)
    # the window ends within a block, which is not stored
    assert said["in the store"] == pytest.approx(stats.bytes_store_kv, rel=0.05)
