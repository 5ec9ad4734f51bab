"""What a user types or pastes into a chat, through a pseudo-terminal."""

from __future__ import annotations

import ast
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

if sys.platform == "win32":
    pytest.skip("no pseudo-terminals", allow_module_level=True)

import pty

SCRIPT = """\
import sys
from infllm_cpp.cli.message_input import message_input
read = message_input()
while True:
    try:
        message = read("")
    except KeyboardInterrupt:
        message = "interrupted"
    print(repr(message), flush=True)
    if message is None:
        break
"""


class Terminal:
    """A process that prints each message; keys go to its terminal."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=slave,
            text=True,
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        )
        os.close(slave)

    def screen(self, text: str) -> None:
        """Wait until `text` is shown."""
        seen, deadline = "", time.monotonic() + 30
        while text not in seen:
            assert time.monotonic() < deadline, f"{text!r} is not in {seen!r}"
            if select.select([self.master], [], [], 1)[0]:
                seen += os.read(self.master, 4096).decode(errors="replace")

    def press(self, keys: str) -> None:
        self.screen("\x1b[?2004h")  # a prompt begins with asking for marks around what is pasted
        os.write(self.master, keys.encode())

    def message(self) -> str | None:
        assert self.process.stdout is not None
        message: str | None = ast.literal_eval(self.process.stdout.readline())
        return message


@pytest.fixture(scope="module")
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.process.kill()
    terminal.process.wait()
    os.close(terminal.master)


LINES = ["Who wrote this?", "", "  The quick brown fox", "jumps."]


def test_a_line_is_a_message(terminal: Terminal) -> None:
    terminal.press("Hello\r")
    assert terminal.message() == "Hello"


def test_a_marked_paste_of_several_lines_is_one_message(terminal: Terminal) -> None:
    terminal.press("\x1b[200~" + "\n".join(LINES) + "\x1b[201~")
    time.sleep(0.2)
    os.write(terminal.master, b"\r")
    assert terminal.message() == "\n".join(LINES)


def test_lines_that_come_at_once_are_one_message(terminal: Terminal) -> None:
    terminal.press("\r".join(LINES) + "\r")
    assert terminal.message() == "\n".join(LINES)


def test_so_are_many(terminal: Terminal) -> None:
    lines = [f"{i} " + "x" * (i % 50) for i in range(200)]  # several reads
    terminal.press("\r".join(lines) + "\r")
    assert terminal.message() == "\n".join(lines)


def test_control_c_and_control_d(terminal: Terminal) -> None:
    terminal.press("Never mind\x03")
    assert terminal.message() == "interrupted"
    terminal.press("\x04")
    assert terminal.message() is None
