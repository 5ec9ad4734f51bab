"""The C API as it is installed, found by CMake and by pkg-config, and its example on the demo model."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from infllm_cpp import __version__
from infllm_cpp.passkey import FILLER, NEEDLE

ROOT = Path(__file__).parents[2]
BIN_DIR = os.environ.get("INFLLM_TEST_BIN_DIR")
PARAMS = "n_init=32,n_local=256,block_size=32,topk=8,max_cached_blocks=8"

pytestmark = pytest.mark.skipif(not BIN_DIR, reason="INFLLM_TEST_BIN_DIR has no build: run scripts/test.sh")


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=True, env={**os.environ, **(env or {})}
    ).stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `cmake --install` gives, moved to where it was not installed."""
    assert BIN_DIR
    folder = tmp_path_factory.mktemp("c")
    run("cmake", "--install", Path(BIN_DIR).parent, "--component", "infllm-dev", "--prefix", folder / "first")
    return (folder / "first").rename(folder / "prefix")


@pytest.fixture(scope="module")
def programs(prefix: Path) -> dict[str, Path]:
    """The example as CMake builds it, and as pkg-config says."""
    source, build, by_hand = ROOT / "examples/c", prefix.parent / "build", prefix.parent / "long_context"
    run(
        "cmake",
        "-G",
        "Ninja",
        "-S",
        source,
        "-B",
        build,
        f"-DCMAKE_PREFIX_PATH={prefix}",
        "-DCMAKE_C_FLAGS=-Wall -Werror",
    )
    run("cmake", "--build", build)

    env = {"PKG_CONFIG_PATH": str(next(prefix.rglob("infllm.pc")).parent)}
    flags = run("pkg-config", "--cflags", "--libs", "infllm", env=env).split()
    libdir = run("pkg-config", "--variable=libdir", "infllm", env=env).strip()
    compiler = os.environ.get("CC", "cc")
    run(compiler, "-std=c11", source / "long_context.c", *flags, f"-Wl,-rpath,{libdir}", "-o", by_hand)
    return {"cmake": build / "long_context", "pkg-config": by_hand}


def test_headers_libraries_and_their_version(prefix: Path) -> None:
    for name in ("llama.h", "llama-infllm.h", "ggml.h", "gguf.h"):
        assert (prefix / "include" / name).is_file()
    env = {"PKG_CONFIG_PATH": str(next(prefix.rglob("infllm.pc")).parent)}
    assert run("pkg-config", "--modversion", "infllm", env=env).strip() == __version__


def test_no_text_has_a_path_of_the_build(prefix: Path) -> None:
    texts = [path for path in prefix.rglob("*") if path.suffix in (".h", ".cmake", ".pc")]
    assert len(texts) > 10
    for path in texts:
        text = path.read_text()
        assert str(ROOT) not in text, path
        assert str(prefix.parent) not in text, path


def test_every_function_is_documented() -> None:
    header = (ROOT / "csrc/llama/llama-infllm.h").read_text()
    names = set(re.findall(r"^LLAMA_API.*?(llama_infllm_\w+) *\(", header, re.M))
    assert len(names) > 30
    page = (ROOT / "docs/c-api.md").read_text()
    assert {name for name in names if f"`{name}()`" not in page} == set()


def test_the_example_answers_from_a_long_text_and_from_its_session(
    programs: dict[str, Path], model_path: Path, tmp_path: Path
) -> None:
    book, session = tmp_path / "book.txt", tmp_path / "book.session"
    book.write_text(FILLER * 12 + NEEDLE.format(key=24681) + FILLER * 40)

    def ask(program: str, *params: str) -> tuple[str, str]:
        question = "What is the pass key? Answer with the number alone."
        command = [programs[program], model_path, book, question, session, *params]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout, result.stderr

    answer, report = ask("cmake", PARAMS)
    assert "24681" in answer, answer
    numbers = re.search(
        r"^(\d+) tokens read, saved(?:.|\n)*^(\d+) tokens, (\d+) of them resident", report, re.M
    )
    assert numbers, report
    n_read, n_tokens, n_resident = map(int, numbers.groups())
    assert n_resident < n_read < n_tokens
    assert int(re.search(r"(\d+) of them paged in", report)[1]) > 0  # type: ignore[index]

    book.unlink()  # the session is enough
    again, report = ask("pkg-config")
    assert again == answer
    assert f"{n_read} tokens opened" in report
    assert "read" not in report


def test_what_is_wrong_is_said_in_a_sentence(
    programs: dict[str, Path], model_path: Path, tmp_path: Path
) -> None:
    session = tmp_path / "book.session"
    for arguments, sentence in (
        ([tmp_path / "none.gguf", "book.txt", "Who?", session], "none.gguf cannot be loaded"),
        ([model_path, tmp_path / "none.txt", "Who?", session], "none.txt cannot be opened"),
        ([model_path, "book.txt", "Who?", session, "n_lokal=1"], "n_lokal"),
        ([model_path, "book.txt", "Who?", model_path], "is not a session file"),
        ([model_path], "usage: "),
    ):
        result = subprocess.run(
            [programs["cmake"], *arguments], capture_output=True, text=True, timeout=300, check=False
        )
        assert result.returncode == 1
        assert sentence in result.stderr.splitlines()[-1]
    assert not session.exists()
