"""Text files that users name."""

from __future__ import annotations

from pathlib import Path

_MAX_BROKEN = 0.02  # part of the characters: older encodings have some, other data has more


def read_text_file(path: Path) -> str:
    """The text of a file, without white space at its ends.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError, ValueError
        One sentence: what is wrong with the file.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory: give the path of a text file")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"the file {path} does not exist: check its path") from None
    except PermissionError:
        raise PermissionError(f"the file {path} cannot be read: permission denied") from None
    except NotADirectoryError:
        raise FileNotFoundError(f"the file {path} does not exist: a part of its path is a file") from None
    return decode_text(data, str(path))


def decode_text(data: bytes, name: str) -> str:
    """The text in `data`; ValueError naming `name` when it is empty or not text."""
    text = data.decode("utf-8", errors="replace").removeprefix("\ufeff").strip()
    if not text:
        raise ValueError(f"{name} is empty")
    if "\0" in text or text.count("\ufffd") > _MAX_BROKEN * len(text):
        raise ValueError(f"{name} is not a text file in UTF-8: convert it to plain text first")
    return text
