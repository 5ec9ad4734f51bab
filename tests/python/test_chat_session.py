"""Commands of `infllm chat`: files, and what is said when they do not work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tiny_models
from infllm_cpp import Llama
from infllm_cpp.cli import chat as chat_module
from infllm_cpp.cli import terminal
from infllm_cpp.cli.chat import ChatSession

Chat = Callable[..., str]

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    path = tmp_path_factory.mktemp("model") / "llama.gguf"
    tiny_models.write("llama", path)
    with Llama(path, n_threads=1, chat_template=TEMPLATE) as llm:
        yield llm


@pytest.fixture
def chat(llm: Llama, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    """What is said on stderr to messages."""

    def run(*messages: str) -> str:
        script = iter([*messages, None])
        monkeypatch.setattr(chat_module, "message_input", lambda _: lambda _: next(script))
        ChatSession(llm, None, {"max_tokens": 2, "temperature": 0}).run()
        return " ".join(capsys.readouterr().err.split())

    return run


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_file_needs_a_path(chat: Chat) -> None:
    assert chat("/file") == chat("/file  ") == "error: /file needs the path of a text file: /file PATH"


def test_files_that_cannot_be_read(chat: Chat, tmp_path: Path) -> None:
    assert chat(f"/file {tmp_path}/none.txt") == (
        f"error: the file {tmp_path}/none.txt does not exist: check its path"
    )
    assert chat(f"/file {tmp_path}") == f"error: {tmp_path} is a directory: give the path of a text file"
    path = write(tmp_path / "a.txt", "a")
    assert "is a file" in chat(f"/file {path}/b.txt")
    path = write(tmp_path / "empty.txt", " \n")
    assert chat(f"/file {path}") == f"error: {path} is empty"


@pytest.mark.parametrize(
    "data",
    [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "A story in UTF-16.".encode("utf-16"), bytes(range(128, 256)) * 20],
    ids=["picture", "utf-16", "noise"],
)
def test_files_that_are_no_text(chat: Chat, tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path / "file.bin", data)
    assert chat(f"/file {path}") == (
        f"error: {path} is not a text file in UTF-8: convert it to plain text first"
    )


def test_a_few_bad_characters_are_no_hindrance(chat: Chat, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "The café is closed. ".encode("latin-1") + b"All is well. " * 20)
    assert "tokens are stored; ask about it" in chat(f"/file {path}")


def test_paths_may_have_quotes_blanks_and_a_tilde(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "my book.txt", "Once upon a time.")
    for name in ("~/my book.txt", '"~/my book.txt"', f"'{tmp_path}/my book.txt'"):
        assert "tokens are stored; ask about it" in chat(f"/file {name}")


def test_an_interrupted_file_does_not_count(
    chat: Chat, llm: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "long.txt", "The grass is green. " * 300)

    class Stops(terminal.PrefillProgress):
        def update(self, n_done: int, n_total: int) -> None:
            if n_done > n_total / 2:
                monkeypatch.undo()
                raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "PrefillProgress", Stops)
    llm.reset()
    said = chat(f"/file {path}")
    assert f"{path} does not count" in said
    assert f"{llm.n_tokens:,} of " in said and "tokens are kept" in said
    assert llm.n_tokens > 2000


def test_a_text_of_several_lines_is_no_command(chat: Chat) -> None:
    assert "is not a command" in chat("/etc is a folder")
    assert "error" not in chat("/etc is a folder\n/usr is another")


def test_a_question_is_asked_again_and_changed(llm: Llama, chat: Chat, tmp_path: Path) -> None:
    assert chat("/retry") == chat("/edit x") == "error: nothing was asked yet: a question comes first"
    text = write(tmp_path / "a.txt", "A text.")
    session = tmp_path / "a.session"
    assert "error" not in chat(f"/file {text}", "One?", "Two?", "/retry", "/edit Three?", f"/save {session}")
    stored = llm.detokenize(llm.tokens).decode()
    assert "A text.\n\nOne?" in stored
    assert "Two?" not in stored
    assert stored.count("Three?") == 1
    assert "error: nothing was asked yet" in chat(f"/load {session}", "/retry")
    assert "error: /edit needs the text" in chat("One?", "/edit")
    failed = chat("One?", "/params top_p 2", "/retry", "/edit Two?", f"/save {session}", f"/load {session}")
    assert failed.count("error: top_p = 2.0 is out of range") == 2
    assert "1 questions so far" in failed  # with its answer, as before


def test_a_system_message_begins_anew(llm: Llama, chat: Chat) -> None:
    assert "the chat begins anew, with this system message" in chat("One?", "/system Be kind.", "Two?")
    stored = llm.detokenize(llm.tokens).decode()
    assert stored.lstrip().startswith("system: Be kind.\nuser: Two?")
    assert "the chat begins anew" in chat("/system")


def test_parameters_are_shown_and_changed(chat: Chat) -> None:
    assert chat("/params") == "max_tokens = 2, temperature = 0"
    assert chat("/params top_k 3") == "max_tokens = 2, temperature = 0, top_k = 3"
    assert "error: /params top is unknown: use max_tokens" in chat("/params top 3")
    assert "error: /params top_k = 'x' is not a number" in chat("/params top_k x")
    assert "error: top_p = 2.0 is out of range" in chat("/params top_p 2", "One?")
