"""A folder of sessions: the one that has most of a prompt."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ._model_changes import ModelChanges
from ._sessions import open_session

ModelKey = tuple[str, ModelChanges]  # digest of its file, and what makes another model of it


@dataclass(frozen=True)
class _Entry:
    """What is known of a file, while it has this version."""

    version: tuple[int, int]
    tokens: npt.NDArray[np.int32]  # empty where it is no session, or of no use
    model: ModelKey | None
    n_ctx: int = 0  # of its context


class SessionLibrary:
    """The session files of a folder, and the tokens of each; a file is read again when it has changed.

    Parameters
    ----------
    folder : str or os.PathLike

    Raises
    ------
    NotADirectoryError
        When it is no folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(os.path.expanduser(os.fspath(folder)))
        if not self.folder.is_dir():
            raise NotADirectoryError(
                f"session_dir = {str(self.folder)!r} is no folder: make it, or give another"
            )
        self._entries: dict[Path, _Entry] = {}

    def longest(
        self, prompt: Sequence[int], model: ModelKey, fits: Callable[[int, int], bool]
    ) -> tuple[Path | None, int]:
        """The session of this model that has most of the beginning of a prompt, and how many tokens.

        `fits`: whether one of so many tokens, of a context of so many, is of use for the prompt.
        """
        self._look()
        wanted = np.asarray(prompt, dtype=np.int32)
        best: tuple[Path | None, int] = (None, 0)
        for path, entry in self._entries.items():
            if entry.model != model or not fits(len(entry.tokens), entry.n_ctx):
                continue
            n = min(len(entry.tokens), len(wanted))
            different = np.flatnonzero(entry.tokens[:n] != wanted[:n])
            n = int(different[0]) if different.size else n
            if n > best[1]:
                best = path, n
        return best

    def leave_out(self, path: Path) -> None:
        """Forget what a file has, until it changes."""
        if entry := self._entries.get(path):
            self._entries[path] = _Entry(entry.version, entry.tokens[:0], None)

    def _look(self) -> None:
        entries = {}
        for path in sorted(self.folder.iterdir()):
            try:
                stat = path.stat()
                version = (stat.st_mtime_ns, stat.st_size)
                known = self._entries.get(path)
                entries[path] = known if known and known.version == version else _read(path, version)
            except OSError:  # it has just gone, or is a folder
                continue
        self._entries = entries


def _read(path: Path, version: tuple[int, int]) -> _Entry:
    try:
        session, notes = open_session(path)
    except ValueError:  # something else
        return _Entry(version, np.empty(0, dtype=np.int32), None)
    tokens = np.asarray(session.tokens(), dtype=np.int32)
    return _Entry(version, tokens, (notes.model_id, notes.changes), notes.n_ctx)
