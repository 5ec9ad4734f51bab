"""A function in a long program: Python's standard library, as the Python in use has it."""

from __future__ import annotations

import random
import re
import sysconfig
from collections import Counter
from functools import cache
from pathlib import Path

from .haystack import N_ANSWER, Haystack, Question, Sample

_BEGIN = re.compile(r"(\s*(?:async )?def (\w+)\()(.*\n.*\S)")


@cache
def library() -> str:
    """The modules of the standard library that are one file, by name.

    Raises
    ------
    RuntimeError
        When this Python has no source of it.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    paths = sorted(folder.glob("[a-z]*.py"))
    if not paths:
        raise RuntimeError(f"code-function needs Python's standard library: {folder} has no modules")
    return "\n\n".join(
        f"# {path.name}\n\n{path.read_text(encoding='utf-8', errors='replace').strip()}" for path in paths
    )


@cache
def blocks(text: str) -> list[str]:
    """Pieces of Python source that begin with a definition, a decorator or a module."""
    return re.split(r"^(?=[ ]*(?:def |async def |class |@)|# \w+\.py$)", text, flags=re.MULTILINE)


@cache
def functions() -> list[tuple[int, str, str]]:
    """Of functions whose name and begin are there only once: number of the piece, ``def name(``, begin."""
    found = [(i, match) for i, piece in enumerate(blocks(library())) if (match := _BEGIN.match(piece))]
    names, begins = (Counter(match[group] for _, match in found) for group in (2, 3))
    return [
        (i, match[1], match[3])
        for i, match in found
        if names[match[2]] == begins[match[3]] == 1 and 24 <= len(match[3]) <= 72
    ]


def code_function(haystack: Haystack, n_tokens: int, depth: float, seed: int) -> Sample:
    """How a function begins, its arguments and the line after them; it is at `depth` in other code."""
    code = Haystack(haystack.llm, library(), blocks)
    index, definition, begin = random.Random(seed).choice(functions())
    question = code.encode(f"\n\n# the same function again\n\n{definition}")
    n_code = n_tokens - len(code.begin) - len(question)
    n_begin = len(code.encode(definition + begin))
    if n_code < n_begin:
        raise ValueError(f"n_tokens = {n_tokens} is too small for a function: {definition.strip()}")
    n_before = round(depth * (n_code - n_begin))
    first, n_read = index, 0
    while n_read < n_before:
        first -= 1
        n_read += len(code.piece(first))
    text = [token for piece in code.cut(n_read - n_before + n_code, first) for token in piece]
    return Sample(code.begin + text[-n_code:], [Question(question, (begin,), n_answer=N_ANSWER)])
