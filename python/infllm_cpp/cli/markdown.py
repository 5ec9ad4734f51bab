"""Answers as Markdown on a terminal, while they come."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownContext, MarkdownElement, TableDataElement
from rich.segment import ControlType, Segment, SegmentLines
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

from .._format import visible

_Line: TypeAlias = list[Segment]

_INTERVAL = 0.1  # seconds from one picture of the unfinished block to the next, at least
_SHARE = 0.2  # of the time, at most, is spent on these pictures

_THEME = Theme({"markdown.code": "cyan"})  # readable on every background

# nothing is left out, but cells beyond the columns of a table: HTML, images, definitions of links are text
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
_PARSER.disable(["image", "reference"])


class _Heading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _CodeBlock(CodeBlock):
    """Code between its fences, in the terminal's own colours, without blanks around it: to be copied."""

    info = ""

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> _CodeBlock:
        info = token.info.strip()
        block = cls(info.partition(" ")[0] or "text", markdown.code_theme)
        block.info = info
        return block

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(f"```{self.info}", style="dim")
        if code := str(self.text).rstrip("\n"):
            yield Syntax(code, self.lexer_name, theme="ansi_dark", background_color="default", word_wrap=True)
        yield Text("```", style="dim")


class _Cell(TableDataElement):
    """A cell of a table whose long words are cut in two, not off."""

    def on_enter(self, context: MarkdownContext) -> None:
        self.content.overflow = "fold"


class _Block(Markdown):
    """Parsed Markdown, whose lines end where the model ended them."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _CodeBlock,
        "code_block": _CodeBlock,
        "td_open": _Cell,
        "th_open": _Cell,
    }

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__("", hyperlinks=False)
        for token in tokens:
            children = [child for child in token.children or () if child.info != "auto"]  # <https://...>
            for child in children:
                if child.type == "softbreak":
                    child.type = "hardbreak"
            token.children = children or None
        self.parsed = tokens


@dataclass
class _Part:
    """A block, or an item of a list: what is printed at once."""

    line: int  # it begins there
    goes_on: bool  # an item, but not the first of its list
    number: int | None = None  # of an item


def _parts(text: str, first: _Part) -> list[_Part]:
    """The parts of a text that goes on where `first` says."""
    parts: list[_Part] = []
    n_items, number = 0, None
    for token in _PARSER.parse(text):
        if token.map is None or token.nesting < 0:
            continue
        line = 0 if not parts else token.map[0]
        if token.type == "list_item_open" and token.level == 1:
            goes_on = n_items > 0 or (not parts and first.goes_on)
            parts.append(_Part(line, goes_on, None if number is None else number + n_items))
            n_items += 1
        elif token.type.endswith("_list_open") and token.level == 0:
            n_items, number = 0, None
            if token.type == "ordered_list_open":
                number = int(token.attrs.get("start", 1))
                if not parts and first.number is not None:
                    number = first.number
        elif token.level == 0:
            parts.append(_Part(line, goes_on=False))
    return parts


class MarkdownAnswer:
    """Print an answer as it comes: what is finished for good, the last part anew until it is finished.

    A part is a paragraph, an item of a list, a table, a piece of code and so on. Of one that is longer than
    the screen the end is shown until it is finished.

    Parameters
    ----------
    console : Console, optional
        A terminal; default: stdout.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stdout, highlight=False, theme=_THEME)
        self._rest = ""  # what is not printed for good
        self._first = _Part(0, goes_on=False)  # how it begins
        self._is_begin = True  # nothing is printed for good yet
        self._n_lines = 0  # of the picture of the rest, above the cursor
        self._next_time = 0.0

    def push(self, text: str) -> None:
        """Add a piece of the answer."""
        self._rest += text
        begin = time.monotonic()
        if begin >= self._next_time:
            self._show()
            end = time.monotonic()
            self._next_time = max(begin + _INTERVAL, end + (end - begin) / _SHARE)

    def close(self) -> None:
        """Print what is left for good. The cursor is at the begin of a line then."""
        text, self._rest = visible(self._rest), ""
        self._print(self._lines(text, _parts(text, self._first)), [])

    def _show(self) -> None:
        """Print what is finished, and a picture of the rest."""
        # of a line that is not complete nobody knows what it will be
        text = visible(self._rest[: self._rest.rfind("\n") + 1])
        finished: list[_Line] = []
        if len(parts := _parts(text, self._first)) > 1:
            finished = self._lines(text, parts, -1)
            self._rest = "\n".join(self._rest.split("\n")[parts[-1].line :])
            self._first = parts[-1]
            self._is_begin = self._is_begin and not finished
        text = visible(self._rest)
        self._print(finished, self._lines(text, _parts(text, self._first)))

    def _lines(self, text: str, parts: list[_Part], end: int | None = None) -> list[_Line]:
        """What the terminal shows of `parts[:end]`."""
        lines = text.split("\n")
        shown: list[_Line] = []
        for i, part in enumerate(parts[:end]):
            tokens = _PARSER.parse(
                "\n".join(lines[part.line : parts[i + 1].line if i + 1 < len(parts) else None])
            )
            if part.number is not None:
                tokens[0].attrs["start"] = part.number
            rendered = self._console.render_lines(_Block(tokens), pad=False)
            rendered = _without_empty([_without_blanks(line) for line in rendered])
            if rendered and not part.goes_on and not (self._is_begin and not shown):
                shown.append([])
            shown += rendered
        return shown

    def _print(self, finished: list[_Line], picture: list[_Line]) -> None:
        """Replace the picture: `finished` is there to stay, below it what the screen has room for."""
        picture = picture[-max(1, self._console.height - 1) :]
        if not finished and not picture and self._n_lines == 0:
            return
        # ^C may stand where the cursor is
        begin = (ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))
        up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)) * self._n_lines
        with self._console:  # written at once
            self._console.control(Control(*begin, *up))
            self._console.print(SegmentLines([*finished, *picture], new_lines=True), end="")
        self._n_lines = len(picture)


def _without_blanks(line: _Line) -> _Line:
    """A line without blanks at its end, which would be copied with it."""
    while line and not line[-1].text.strip():
        line = line[:-1]
    return [*line[:-1], Segment(line[-1].text.rstrip(), line[-1].style)] if line else []


def _without_empty(lines: list[_Line]) -> list[_Line]:
    """Lines without empty ones above and below."""
    full = [i for i, line in enumerate(lines) if line]
    return lines[full[0] : full[-1] + 1] if full else []
