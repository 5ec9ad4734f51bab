"""Messages of earlier chats, in a file of the user's."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from . import terminal as term

_MESSAGE_MAX = 10_000  # characters: what is longer is a text that was pasted, not to be had back by a key
_FILE_MAX = 1 << 20  # bytes: beyond it half of the messages are forgotten, the oldest


def history_path() -> Path:
    """Where `infllm chat` keeps messages: in the user's folder for the state of programs."""
    return platformdirs.user_state_path("infllm-cpp") / "chat-history"


class _History(FileHistory):
    """In a file that its owner alone can read; a chat goes on where it cannot be written.

    Raises
    ------
    OSError
        When it cannot be made or read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        if path.stat().st_size > _FILE_MAX:
            self._forget_half()

    def store_string(self, string: str) -> None:
        if len(string) > _MESSAGE_MAX:
            return
        try:
            super().store_string(string)
        except OSError as err:
            term.note(f"(the message is not kept for later chats: {err})")

    def _forget_half(self) -> None:
        messages = list(self.load_history_strings())  # the latest first
        shorter = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        other = _History(shorter)
        for message in reversed(messages[: len(messages) // 2]):
            other.store_string(message)
        shorter.replace(self._path)


def open_history(path: Path | None) -> History:
    """The messages of a file, or of none where it cannot be used, which is said."""
    if path is None:
        return InMemoryHistory()
    try:
        return _History(path)
    except OSError as err:
        term.note(f"(messages are not kept for later chats: {err})")
        return InMemoryHistory()
