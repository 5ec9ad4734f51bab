"""What the Python API shares with llama-cpp-python, found by introspection.

python scripts/peer_table.py            prints the table
python scripts/peer_table.py --write    writes it into docs/llama-cpp-python.md
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import infllm_cpp
from infllm_cpp import types

DOC = Path(__file__).parents[1] / "docs" / "llama-cpp-python.md"
BEGIN, END = "<!-- table: scripts/peer_table.py -->\n", "<!-- end of table -->\n"

Theirs = Any  # the module llama_cpp, which has no types to rely on


def import_theirs() -> Theirs:
    """llama-cpp-python, with our libllama: it is installed without libraries of its own."""
    os.environ.setdefault("LLAMA_CPP_LIB_PATH", str(infllm_cpp.library_dir()))
    return importlib.import_module("llama_cpp")


def parameters(function: Any) -> list[str]:
    hidden = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    signature = inspect.signature(function)
    return [p.name for p in signature.parameters.values() if p.kind not in hidden and p.name != "self"]


def keys(typed_dict: Any) -> list[str]:
    return list(inspect.get_annotations(typed_dict)) + [
        key
        for base in getattr(typed_dict, "__orig_bases__", ())
        for key in getattr(base, "__annotations__", ())
    ]


def public(cls: type) -> list[str]:
    return [name for name in dir(cls) if not name.startswith("_")]


def defaults(function: Any) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


def rows(theirs: Theirs) -> list[tuple[str, list[str], list[str]]]:
    """What is compared, with names of llama-cpp-python's and of ours."""
    a, b, their_types = theirs.Llama, infllm_cpp.Llama, theirs.llama_types
    return [
        ("parameters of `Llama()`", parameters(a.__init__), parameters(b.__init__)),
        ("methods and attributes", public(a), public(b)),
        *(
            (f"parameters of `{name}()`", parameters(getattr(a, name)), parameters(getattr(b, name)))
            for name in ("create_completion", "create_chat_completion", "tokenize", "detokenize", "eval")
        ),
        ("keys of a completion", keys(their_types.CreateCompletionResponse), keys(types.Completion)),
        ("keys of its choices", keys(their_types.CompletionChoice), keys(types.CompletionChoice)),
        (
            "keys of a chat completion",
            keys(their_types.CreateChatCompletionResponse),
            keys(types.ChatCompletion),
        ),
        ("keys of its choices", keys(their_types.ChatCompletionResponseChoice), keys(types.ChatChoice)),
        ("keys of `usage`", keys(their_types.CompletionUsage), keys(types.Usage)),
    ]


def names(found: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(set(found))) or "-"


def table(theirs: Theirs) -> str:
    """The tables, in Markdown."""
    lines = ["| | in both | not here | only here |", "|---|---|---|---|"]
    for title, a, b in rows(theirs):
        cells = names(set(a) & set(b)), names(set(a) - set(b)), names(set(b) - set(a))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")

    lines += ["", "| default of | llama-cpp-python | here |", "|---|---|---|"]
    for name in ("__init__", "create_completion", "create_chat_completion"):
        theirs_of, ours_of = defaults(getattr(theirs.Llama, name)), defaults(getattr(infllm_cpp.Llama, name))
        for parameter in theirs_of.keys() & ours_of.keys() - {"self"}:
            if theirs_of[parameter] != ours_of[parameter]:
                owner = "" if name == "__init__" else f" of `{name}()`"
                lines.append(
                    f"| `{parameter}`{owner} | `{theirs_of[parameter]!r}` | `{ours_of[parameter]!r}` |"
                )
    n_head = lines.index("") + 3
    return "\n".join([*lines[:n_head], *sorted(lines[n_head:])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into the page")
    args = parser.parse_args()
    text = table(import_theirs())
    if args.write:
        before, rest = DOC.read_text(encoding="utf-8").split(BEGIN)
        DOC.write_text(before + BEGIN + text + END + rest.split(END)[1], encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
