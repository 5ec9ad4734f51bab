"""Grammars that an answer must follow, in llama.cpp's GBNF."""

from __future__ import annotations

import json
import os
from pathlib import Path

from . import _core


class LlamaGrammar:
    """A grammar; the names are those of llama-cpp-python.

    Parameters
    ----------
    text : str
        GBNF (llama.cpp, ``grammars/README.md``); its rule `root` is what an answer must be.

    Raises
    ------
    TypeError, ValueError
        When `text` is no str, or is empty. Whether it is GBNF is seen when it is used.
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"text = {text!r} is not a str")
        if not text.strip():
            raise ValueError("the grammar is empty: it needs a rule named root")
        self.text = text

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """A grammar from its text; `verbose` has no use here."""
        return cls(grammar)

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> LlamaGrammar:
        """A grammar from a file; OSError when it cannot be read."""
        return cls(Path(file).read_text(encoding="utf-8"))

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> LlamaGrammar:
        """The grammar of the JSON texts that a schema, given as JSON, allows.

        Raises
        ------
        ValueError
            When it is not JSON, or llama.cpp cannot make a grammar of it.
        """
        try:
            json.loads(json_schema)
            return cls(_core.grammar_of_schema(json_schema))
        except (RuntimeError, ValueError) as err:
            raise ValueError(f"json_schema cannot be made a grammar: {err}") from None
