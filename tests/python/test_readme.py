"""The examples of README.md, run as they stand.

Every ``python`` block is run, and every line that begins with ``$ `` of a ``console`` block, in a directory
with a ``model.gguf`` and a ``book.txt``. ``<!-- not tested: why -->`` in the line above a block leaves
it out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"

_BLOCK = re.compile(
    r"(?P<mark><!-- not tested: [^>]+ -->\n)?^```(?P<kind>python|console)\n(?P<code>.*?)^```$", re.M | re.S
)


def blocks(kind: str) -> list[str]:
    found = _BLOCK.finditer(README.read_text(encoding="utf-8"))
    return [match["code"] for match in found if match["kind"] == kind and not match["mark"]]


@pytest.fixture
def directory(tmp_path: Path, model_path: Path) -> Path:
    (tmp_path / "model.gguf").symlink_to(model_path)
    sentence = "It was a quiet evening in the village, and nothing happened for a long while. "
    (tmp_path / "book.txt").write_text(sentence * 40 + "The gardener did it. " + sentence * 40)
    return tmp_path


def test_there_are_examples_of_both_kinds() -> None:
    assert blocks("python")
    assert blocks("console")


@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples(directory: Path, code: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    if "set_trace" in code:
        assert len(re.findall(r"^layer \d+, token \d+: blocks \[[\d ]+\]$", result.stdout, re.M)) >= 30


def test_examples_read_books_of_any_length() -> None:
    """A context that follows its text has no limit that a book could pass: see test_following.py."""
    for code in blocks("python") + blocks("console"):
        if "book.txt" in code:
            assert not re.search(r"n_ctx=|run .*--n-ctx", code)


@pytest.mark.parametrize("code", blocks("console"))
def test_console_examples(directory: Path, code: str) -> None:
    commands = re.findall(r"^\$ (.*(?:\\\n.*)*)", code, re.M)
    assert commands
    book = directory / "book.txt"  # read by most of them: a third of it will do, with the gardener
    n = len(book.read_text()) // 3
    book.write_text(book.read_text()[n:-n])
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands:
        result = subprocess.run(
            ["bash", "-ec", command],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=env,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
