"""Apply unified diffs to text, the same way on every machine.

Neither ``git`` nor ``patch`` need be installed, all hunks are placed before anything is written, and the
line offset and fuzz of each are known, which is what ``check_patch.py`` reports. A patch of ours only
changes files that exist: hooks into upstream code; new files go to ``csrc/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_FUZZ = 2


class PatchError(Exception):
    """A hunk that fits nowhere, or a text that is not a unified diff; says which in one sentence."""


@dataclass
class Hunk:
    """Lines ``old`` at (1-based) line ``start`` become ``new``; both hold the context lines."""

    start: int
    old: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    n_head: int = 0  # context lines before the first change
    n_tail: int = 0  # context lines after the last change

    def add(self, line: str) -> None:
        kind, text = line[:1], line[1:]
        if kind in " \n":  # some editors strip the blank of an empty context line
            self.old.append(text or "\n")
            self.new.append(text or "\n")
            self.n_tail += 1
            return
        if self.old == self.new:
            self.n_head = len(self.old)
        self.n_tail = 0
        (self.old if kind == "-" else self.new).append(text)


@dataclass
class FilePatch:
    """All hunks for one file."""

    path: str
    hunks: list[Hunk] = field(default_factory=list)
    n_added: int = 0
    n_removed: int = 0


@dataclass
class Placement:
    """Where a hunk fitted: lines away from the stated place, context lines ignored."""

    offset: int
    fuzz: int


def parse(text: str) -> list[FilePatch]:
    """Read a diff as written by ``git diff`` or ``diff -u``."""
    files: list[FilePatch] = []
    n_old = n_new = 0  # lines that the current hunk still lacks
    for line in text.splitlines(keepends=True):
        if n_old > 0 or n_new > 0:
            if line[:1] not in " +-\n":
                raise PatchError(f"the patch for {files[-1].path} ends in the middle of a hunk")
            files[-1].hunks[-1].add(line)
            n_old -= line[:1] != "+"
            n_new -= line[:1] != "-"
            files[-1].n_added += line[:1] == "+"
            files[-1].n_removed += line[:1] == "-"
        elif line.startswith("+++ "):
            path = line[4:].split("\t")[0].strip()
            files.append(FilePatch(path.split("/", 1)[-1]))
        elif match := re.match(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@", line):
            if not files:
                raise PatchError("the patch has a hunk before the first file name")
            files[-1].hunks.append(Hunk(int(match[1])))
            n_old, n_new = int(match[2] or 1), int(match[3] or 1)
    if n_old > 0 or n_new > 0:
        raise PatchError(f"the patch for {files[-1].path} ends in the middle of a hunk")
    return files


def apply(text: str, patch: FilePatch) -> tuple[str, list[Placement]]:
    """Return the patched text and where each hunk went; raise PatchError if one fits nowhere."""
    lines = text.splitlines(keepends=True)
    placements: list[Placement] = []
    shift = 0   # lines that earlier hunks added
    offset = 0  # the upstream file moved by this much before the last hunk: the best guess for the next
    floor = 0   # hunks come in order and never overlap
    for i, hunk in enumerate(patch.hunks):
        expected = hunk.start - 1 + shift
        found = _find(lines, hunk, expected + offset, floor)
        if found is None:
            raise PatchError(f"hunk {i + 1} of {len(patch.hunks)} does not fit {patch.path} (line {hunk.start})")
        at, head, tail = found
        offset = at - head - expected
        placements.append(Placement(offset, max(head, tail)))
        new = hunk.new[head : len(hunk.new) - tail]
        n_old = len(hunk.old) - head - tail
        lines[at : at + n_old] = new
        floor = at + len(new)
        shift += len(new) - n_old
    return "".join(lines), placements


def _find(lines: list[str], hunk: Hunk, guess: int, floor: int) -> tuple[int, int, int] | None:
    """Line at which the hunk fits nearest to the guess, and the context lines dropped at head and tail."""
    for fuzz in range(MAX_FUZZ + 1):
        head, tail = min(fuzz, hunk.n_head), min(fuzz, hunk.n_tail)
        old = hunk.old[head : len(hunk.old) - tail]
        for at in _nearest(guess + head, floor, len(lines) - len(old)):
            if lines[at : at + len(old)] == old:
                return at, head, tail
    return None


def _nearest(guess: int, first: int, last: int) -> Iterator[int]:
    """All numbers of first..last, nearest to the guess first."""
    for distance in range(max(abs(guess - first), abs(last - guess)) + 1):
        for at in {guess + distance, guess - distance}:
            if first <= at <= last:
                yield at
