"""What a terminal shows of what is written to it."""

from __future__ import annotations

import re

from rich.cells import cell_len

_TOKENS = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n])", re.DOTALL)


class Screen:
    """A terminal that knows what `infllm_cpp.cli.markdown` writes, and refuses all else.

    Parameters
    ----------
    width, height : int
        Cells. The cursor cannot go above the screen: what has been scrolled away stays as it is.
    """

    def __init__(self, width: int, height: int) -> None:
        self._width = width
        self._height = height
        self._lines = [""]
        self._row = 0
        self._is_at_begin = True
        self.is_cursor_shown = True

    def write(self, text: str) -> int:
        """Of a file that is written to."""
        end = 0
        for match in _TOKENS.finditer(text):
            assert match.start() == end, f"{text[end : match.start()]!r} is unknown"
            end = match.end()
            number, command, control, char = match.groups()
            if command == "A":
                self._row = max(len(self._lines) - self._height, 0, self._row - int(number))
            elif command == "K" and number == "2":
                self._lines[self._row] = ""
            elif command in ("l", "h") and number == "?25":
                self.is_cursor_shown = command == "h"
            elif control == "\r":
                self._is_at_begin = True
            elif control == "\n":
                self._next_line()
            elif char is not None:
                self._put(char)
            else:
                assert command == "m", f"{match[0]!r} is unknown"
        assert end == len(text), f"{text[end:]!r} is unknown"
        return len(text)

    def flush(self) -> None:
        """Of a file that is written to."""

    def isatty(self) -> bool:
        """Of a file that is written to."""
        return True

    def lines(self) -> list[str]:
        """All lines down to the cursor, those that have been scrolled away, too."""
        below = self._lines[self._row + 1 :]
        assert not any(below), f"{below} was left below the cursor"
        return self._lines[: self._row + 1]

    def _next_line(self) -> None:
        self._row += 1
        if self._row == len(self._lines):
            self._lines.append("")
        self._is_at_begin = True

    def _put(self, char: str) -> None:
        line = "" if self._is_at_begin else self._lines[self._row]
        if cell_len(line + char) > self._width:
            self._next_line()
            line = ""
        self._lines[self._row] = line + char
        self._is_at_begin = False
