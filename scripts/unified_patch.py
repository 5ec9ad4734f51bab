"""Apply unified diffs to text, the same way on every machine.

Neither ``git`` nor ``patch`` need be installed, and nothing is guessed: a hunk goes where it is stated, or,
when upstream has moved, to the only place that has all of its lines. Patches of ours change files that exist,
nothing else: they are hooks; new files go to ``csrc/``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field


class PatchError(Exception):
    """A hunk that fits nowhere or in several places, or a broken diff; says which in one sentence."""


@dataclass
class Hunk:
    """Lines ``old`` at (1-based) line ``start`` become ``new``; both hold the context lines."""

    start: int
    old: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)


@dataclass
class FilePatch:
    """All hunks for one file."""

    path: str
    hunks: list[Hunk] = field(default_factory=list)
    n_added: int = 0
    n_removed: int = 0


def parse(text: str) -> list[FilePatch]:
    """Read a diff as written by ``git diff`` or ``diff -u``."""
    files: list[FilePatch] = []
    n_old = n_new = 0  # lines that the current hunk still lacks
    for line in text.splitlines(keepends=True):
        if n_old > 0 or n_new > 0:
            kind, content = line[0], line[1:]
            if kind == "\n":  # some editors strip the blank of an empty context line
                kind, content = " ", line
            if kind not in " +-":
                break
            if kind != "+":
                files[-1].hunks[-1].old.append(content)
                n_old -= 1
            if kind != "-":
                files[-1].hunks[-1].new.append(content)
                n_new -= 1
            files[-1].n_added += kind == "+"
            files[-1].n_removed += kind == "-"
        elif line.startswith("+++ "):
            files.append(FilePatch(line[4:].split("\t")[0].strip().split("/", 1)[-1]))
        elif match := re.match(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@", line):
            if not files:
                raise PatchError("the patch has a hunk before the first file name")
            files[-1].hunks.append(Hunk(int(match[1])))
            n_old, n_new = int(match[2] or 1), int(match[3] or 1)
    if n_old > 0 or n_new > 0:
        raise PatchError(f"the patch for {files[-1].path} ends in the middle of a hunk")
    return files


def apply(text: str, patch: FilePatch) -> tuple[str, list[int]]:
    """Return the patched text and how many lines away from its stated place each hunk went."""
    lines = text.splitlines(keepends=True)
    offsets: list[int] = []
    shift = 0  # lines that earlier hunks added
    for hunk in patch.hunks:
        stated = hunk.start - 1 + shift
        n_old = len(hunk.old)
        places = [at for at in range(len(lines) - n_old + 1) if lines[at : at + n_old] == hunk.old]
        expected = stated + (offsets[-1] if offsets else 0)  # what moved one hunk has often moved the next
        if expected in places:
            places = [expected]
        if len(places) != 1:
            fits = f"fits {len(places)} places of" if places else "does not fit"
            raise PatchError(
                f"hunk {len(offsets) + 1} of {len(patch.hunks)} {fits} {patch.path} (line {hunk.start})"
            )
        lines[places[0] : places[0] + n_old] = hunk.new
        offsets.append(places[0] - stated)
        shift += len(hunk.new) - n_old
    return "".join(lines), offsets
