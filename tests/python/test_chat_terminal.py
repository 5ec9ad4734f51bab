"""`infllm chat` on a terminal: Markdown, keys, history."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("no pseudo-terminals", allow_module_level=True)

from conftest import Run
from infllm_cpp.cli.history import open_history
from infllm_cpp.models import demo_model_path
from on_terminal import PROMPT, PROMPT_ENDS, OnTerminal
from screen import Screen
from test_cli import GREEDY, SMALL_OPTIONS
from test_markdown import show

CHAT = ("chat", *GREEDY, *SMALL_OPTIONS)
QUESTION = "Write a short Python function that adds two numbers, and explain it in two paragraphs."


def state(folder: Path) -> dict[str, str]:
    """Variables that make `folder` the one for the state of programs."""
    return {
        "XDG_STATE_HOME": str(folder),
        "HOME": str(folder),
        "INFLLM_CACHE_DIR": str(demo_model_path().parent),
    }


@pytest.mark.usefixtures("model_path")
def test_chat_on_a_terminal(tmp_path: Path) -> None:
    with OnTerminal(*CHAT, "-n", "30", env=state(tmp_path)) as terminal:
        terminal.expect("InfLLM memory, n_ctx 1,024, training length 8,192")
        terminal.expect(PROMPT)
        terminal.press("\x03")
        terminal.expect("interrupted")
        terminal.expect(PROMPT)
        terminal.press("What is 2+2?\r")
        terminal.expect(PROMPT_ENDS)
        said = terminal.expect(PROMPT)
        assert "4" in said
        assert "tok/s; decode" in said
        terminal.press("\x04")
        assert terminal.process.wait(timeout=60) == 0


def test_an_answer_is_shown_as_markdown(infllm: Run, tmp_path: Path) -> None:
    """In the end a terminal smaller than the answer shows all of it, as one to which it came at once."""
    options = (*CHAT, "-n", "160")
    plain = infllm(*options, stdin=QUESTION + "\n").stdout
    assert "```" in plain and len(plain) > 300
    for option, expected in ((), show([plain], 40, 8)), (("--no-markdown",), plain.split("\n")):
        with OnTerminal(*options, *option, rows=8, columns=40, only_stdout=True) as terminal:
            assert terminal.process.stdin is not None
            terminal.process.stdin.write(f"{QUESTION}\n".encode())
            terminal.process.stdin.close()
            written = terminal.rest()
        if option:
            assert written.replace("\r\n", "\n").split("\n") == expected
        else:
            screen = Screen(40, 8)
            screen.write(written)
            assert screen.lines() == expected
            assert screen.is_cursor_shown


@pytest.mark.usefixtures("model_path")
def test_ctrl_c_while_an_answer_streams_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    with OnTerminal(*CHAT, "-n", "800", rows=8, columns=40, env=state(tmp_path)) as terminal:
        terminal.expect(PROMPT)
        terminal.press("Count from one to three hundred, in words.\r")
        terminal.expect(PROMPT_ENDS)
        terminal.expect("\x1b[1A")  # a picture is replaced by the next
        terminal.press("\x03")
        written = terminal.expect("(interrupted; /quit or Ctrl-D leaves)")
        assert written.rfind("\x1b[?25l") <= written.rfind("\x1b[?25h")
        terminal.expect(PROMPT)
        terminal.press("/stats\r")
        terminal.expect("tokens ")
        terminal.expect(PROMPT)
        terminal.press("\x04")
        assert terminal.process.wait(timeout=60) == 0
        assert terminal.settings_now() == terminal.settings


@pytest.mark.usefixtures("model_path")
def test_messages_come_back_in_a_later_chat(tmp_path: Path) -> None:
    for keys in ("/params top_k 7\r", "\x1b[A\r"):  # the key up
        with OnTerminal(*CHAT, env=state(tmp_path)) as terminal:
            terminal.expect(PROMPT)
            terminal.press(keys)
            terminal.expect("top_k = 7")
            terminal.expect(PROMPT)
            terminal.press("\x04")
            assert terminal.process.wait(timeout=60) == 0
    [path] = tmp_path.rglob("chat-history")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.read_text().count("+/params top_k 7\n") == 1  # the same twice is kept once


@pytest.mark.parametrize(("option", "variable"), [(["--no-history"], ""), ([], "1")])
@pytest.mark.usefixtures("model_path")
def test_messages_are_not_kept(tmp_path: Path, option: list[str], variable: str) -> None:
    env = state(tmp_path) | ({"INFLLM_NO_HISTORY": variable} if variable else {})
    with OnTerminal(*CHAT, *option, env=env) as terminal:
        terminal.expect(PROMPT)
        terminal.press("/params top_k 7\r")
        terminal.expect("top_k = 7")
        terminal.expect(PROMPT)
        terminal.press("\x04")
        assert terminal.process.wait(timeout=60) == 0
    assert not list(tmp_path.rglob("chat-history"))


def messages(path: Path) -> list[str]:
    return list(open_history(path).load_history_strings())


def test_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "history"
    history = open_history(path)
    history.append_string("of two\nlines")
    history.append_string("x" * 10_001)  # a text that was pasted
    history.append_string("\udcff")
    assert messages(path) == ["?", "of two\nlines"]
    path.chmod(0o644)
    assert messages(path) == ["?", "of two\nlines"]
    assert path.stat().st_mode & 0o777 == 0o600

    for i in range(150):
        history.append_string(f"{i} {'x' * 9_000}")
    assert path.stat().st_size > 1 << 20
    kept = messages(path)
    assert [message.split()[0] for message in kept] == [str(i) for i in range(149, 73, -1)]
    assert path.stat().st_size < 1 << 20
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["history"]
    assert capsys.readouterr().err == ""


def test_a_chat_goes_on_without_its_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    history = open_history(tmp_path / "file" / "history")
    assert "(messages are not kept for later chats: " in capsys.readouterr().err
    history.append_string("a")
    assert history.get_strings() == ["a"]

    path = tmp_path / "gone" / "history"
    history = open_history(path)
    path.unlink()
    path.parent.rmdir()
    history.append_string("a")
    assert "(the message is not kept for later chats: " in capsys.readouterr().err
    assert history.get_strings() == ["a"]


def test_a_line_after_an_answer_tells_what_was_paged(infllm: Run, tmp_path: Path) -> None:
    path = tmp_path / "facts.txt"
    path.write_text("The grass is green. The sky is blue. " * 90)
    script = f"/file {path}\nWhat colour is the sky?\nAnd the grass?\n"
    result = infllm(*CHAT, "-n", "10", stdin=script)
    line = r"prefill \d+ tokens \([\d,]+ more were stored\), \d+ tok/s; decode \d+ tokens, [\d.]+ tok/s; "
    line += r"([\d,]+) blocks paged in, hit rate \d+ %"
    assert sum(re.fullmatch(line, text) is not None for text in result.stderr.splitlines()) == 2, (
        result.stderr
    )
    result = infllm(*CHAT, "-n", "10", "-q", stdin="What colour is the sky?\n")
    assert result.stdout != ""
    assert result.stderr == "(--max-tokens is reached)\n"
