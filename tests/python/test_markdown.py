"""Answers as Markdown: what a terminal shows in the end, however they come."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest
from rich.console import Console

from infllm_cpp.cli import markdown
from infllm_cpp.cli.markdown import MarkdownAnswer
from screen import Screen

ANSWER = """\
Three **bold** words, `code <b>` and <b>HTML</b>:
a second line.

1. First, with [a link](https://example.org/x)
2. Second

   of two paragraphs
   - and a list
1. Third

# Heading
| a | b |
|---|--:|
| 1 | **2** |

```python title
def f(x):
    return x
```

> a quote

[1]: https://example.org/definition
<https://example.org/auto> ![picture](https://example.org/p.png)
"""

SHOWN = """\
Three bold words, code <b> and <b>HTML</b>:
a second line.

1 First, with a link (https://example.org/x)
2 Second
of two paragraphs
• and a list
3 Third

Heading

a b
─
1 2

```python title
def f(x):
return x
```

▌ a quote

[1]: https://example.org/definition
https://example.org/auto !picture (https://example.org/p.png)
"""


def show(pieces: Sequence[str], width: int = 70, height: int = 24) -> list[str]:
    """Lines of a terminal of its own after an answer in pieces, each of them drawn."""
    screen = Screen(width, height)
    console = Console(
        file=screen,  # type: ignore[arg-type]
        force_terminal=True,
        color_system="standard",
        width=width,
        height=height,
        highlight=False,
    )
    answer = MarkdownAnswer(console)
    for piece in pieces:
        answer.push(piece)
    answer.close()
    assert screen.is_cursor_shown
    return screen.lines()


def cut(text: str, seed: int) -> list[str]:
    """Pieces of one to eight characters."""
    rng, pieces = random.Random(seed), []
    while text:
        n = rng.randrange(1, 9)
        pieces.append(text[:n])
        text = text[n:]
    return pieces


@pytest.fixture(autouse=True)
def _every_piece_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "_INTERVAL", 0.0)
    monkeypatch.setattr(markdown, "_SHARE", float("inf"))


def test_nothing_is_left_out() -> None:
    lines = [" ".join(line.split()) for line in show([ANSWER])]
    assert re.sub("─+", "─", "\n".join(lines)) == SHOWN


@pytest.mark.parametrize("seed", range(5))
def test_pieces_end_as_the_whole_does(seed: int) -> None:
    assert show(cut(ANSWER, seed)) == show([ANSWER])


def test_a_long_answer_is_there_once() -> None:
    """Longer than the screen, in paragraphs, items, one paragraph and one piece of code."""
    words = " ".join(f"word{i}" for i in range(200))
    lines = "\n".join(f"line{i}" for i in range(100))
    items = "\n".join(f"{i}. item{i}" for i in range(1, 40))
    text = f"{words}\n\n{items}\n\n```\n{lines}\n```\n\nThe end."
    shown = show(cut(text, 0), width=40, height=10)
    assert shown == show([text], width=40, height=1000)
    assert " ".join(shown).split() == [
        *words.split(),
        *(part for i in range(1, 40) for part in (str(i), f"item{i}")),
        *("```", *lines.split(), "```", "The", "end."),
    ]


def test_any_text_in_any_pieces() -> None:
    atoms = (
        *("word ", "this word ", "\n", "\n\n", "- ", "1. ", "12) ", "# ", "> ", "```python\n", "```\n"),
        *("    ", "\t", "**", "*", "`", "~~", "[a](b)", "[x]: y", "<b>", "| a | b |\n|---|---|\n", "| 1 |"),
        *("---\n", "===\n", "&lt;", "你好", "🎉", "\x1b[2J", "\r\n", "\0", "\x9b", "<http://x.y>", "x" * 50),
    )
    for seed in range(100):
        rng = random.Random(seed)
        text = "".join(rng.choice(atoms) for _ in range(rng.randrange(1, 60)))
        width, height = rng.choice((20, 60)), rng.choice((2, 5, 24))
        shown = show([text], width, height)
        assert show(cut(text, seed), width, height) == shown, repr(text)
        # a row of a table has no more cells than the first one
        assert "|" in text or "".join(shown).count("word") == text.count("word"), repr(text)


def test_a_model_cannot_clear_the_screen() -> None:
    assert show(["\x1b[2J\x1b]0;title\x07 and \x9b5A"]) == ["␛[2J␛]0;title␇ and \ufffd5A", ""]


def test_an_answer_without_text_is_nothing() -> None:
    assert show([]) == [""]
    assert show(["\n\n"]) == [""]
