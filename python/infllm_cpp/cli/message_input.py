"""What a user types or pastes into a chat: one message at a time."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import create_output

from .history import open_history


def message_input(history: Path | None = None) -> Callable[[str], str | None]:
    """A function that returns the next message, or ``None`` at the end.

    On a terminal a message is a line, or a pasted text of several lines; else a line. The function's argument
    is what the line has at first, on a terminal.

    Parameters
    ----------
    history : Path or None
        On a terminal the keys up and Ctrl-R bring back messages of this file, and new ones are added to it;
        ``None``: messages of this chat alone.
    """
    if not sys.stdin.isatty():
        return _read_line
    # answers alone go to stdout
    output = create_output(stdout=sys.stderr)
    session: PromptSession[str] = PromptSession(
        key_bindings=_bindings(), output=output, history=open_history(history)
    )

    def read(default: str) -> str | None:
        try:
            return session.prompt("> ", default=default).strip()
        except EOFError:
            return None

    return read


def _read_line(default: str) -> str | None:
    line = sys.stdin.readline()
    return line.strip() if line else None


def _bindings() -> KeyBindings:
    """Terminals that mark what is pasted need nothing; from others it comes as keys, all at once."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        if _more_is_there(event):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    return bindings


def _more_is_there(event: KeyPressEvent) -> bool:
    """True if keys have come after this one, faster than they can be pressed."""
    if any(press.key is not Keys.CPRResponse for press in event.app.key_processor.input_queue):
        return True
    return sys.platform != "win32" and bool(select.select([event.app.input.fileno()], [], [], 0.01)[0])
