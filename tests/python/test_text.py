"""Characters and stop strings that span tokens."""

from __future__ import annotations

import pytest

from infllm_cpp._text import TextStream


def stream(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    text = TextStream(stop)
    out = [text.push(piece) for piece in pieces]
    return [*out, text.finish()], text.stopped


def test_a_character_split_over_tokens_comes_out_whole() -> None:
    data = "a😀b".encode()
    out, _ = stream([data[i : i + 1] for i in range(len(data))])
    assert [s for s in out if s] == ["a", "😀", "b"]


def test_bytes_that_are_not_utf8_become_replacement_characters() -> None:
    out, _ = stream([b"a\xff", b"b", "é".encode()[:1]])
    assert "".join(out) == "a�b�"


def test_a_broken_character_does_not_eat_the_next_one() -> None:
    out, _ = stream(["😀".encode()[:3], "é".encode()])
    assert "".join(out) == "�é"


def test_a_stop_string_that_spans_tokens_is_never_shown() -> None:
    out, stopped = stream([b"one EN", b"D", b" two"], stop=("END",))
    assert out[0] == "one "
    assert "".join(out) == "one "
    assert stopped


def test_the_beginning_of_a_stop_string_is_shown_when_it_is_not_one() -> None:
    out, stopped = stream([b"one EN", b"ough"], stop=("END",))
    assert "".join(out) == "one ENough"
    assert not stopped


def test_text_held_back_comes_out_at_the_end() -> None:
    out, stopped = stream([b"one EN"], stop=("END",))
    assert out == ["one ", "EN"]
    assert not stopped


def test_the_first_of_several_stop_strings_ends_the_text() -> None:
    out, stopped = stream([b"a.b\nc"], stop=("\n", "."))
    assert "".join(out) == "a"
    assert stopped


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_stop_string_that_overlaps_itself_is_found(size: int) -> None:
    data = b"xaaabaabz"
    out, stopped = stream([data[i : i + size] for i in range(0, len(data), size)], stop=("aab",))
    assert "".join(out) == "xa"
    assert stopped
