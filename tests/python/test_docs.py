"""Pictures of the documentation's site."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("matplotlib")

from mkdocs.exceptions import PluginError

import docs_hooks

ROOT = Path(__file__).parents[2]
ASKED = [
    request
    for page in sorted((ROOT / "docs").glob("*.md"))
    for request in re.findall(r"<!-- pictures: (\w+) (\S+) -->", page.read_text(encoding="utf-8"))
]


@pytest.fixture(autouse=True)
def _drawn_anew() -> None:
    docs_hooks._pictures.cache_clear()


def test_pages_ask_for_pictures_of_both_kinds() -> None:
    assert {kind for kind, _ in ASKED} == {"eval", "trace"}


@pytest.mark.parametrize(("kind", "source"), ASKED)
def test_pictures_are_drawn_the_same_each_time(kind: str, source: str) -> None:
    pictures = docs_hooks._pictures(kind, source)
    docs_hooks._pictures.cache_clear()
    assert docs_hooks._pictures(kind, source) == pictures
    assert len({picture.path for picture in pictures}) == len(pictures) > 1
    for picture in pictures:
        assert picture.caption
        assert ElementTree.fromstring(picture.svg).tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize(("kind", "source"), ASKED)
def test_without_matplotlib_a_sentence_says_what_is_missing(
    kind: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PluginError, match=r"cannot be drawn: .*matplotlib.*pip install"):
        docs_hooks._pictures(kind, source)


def test_what_cannot_be_drawn_is_named() -> None:
    with pytest.raises(PluginError, match=r"the pictures of docs/data/none.trace cannot be drawn: .*none"):
        docs_hooks._pictures("trace", "docs/data/none.trace")
    with pytest.raises(PluginError, match=r"pictures: film is unknown: use eval, trace"):
        docs_hooks._pictures("film", "docs/data/none.trace")
