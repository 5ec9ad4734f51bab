"""A prompt from the command line, and its answer: what `infllm run` and `infllm trace record` share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .._files import decode_text, read_text_file
from ..llama import Llama
from ..types import ChatMessage, Timings
from . import terminal as term
from .options import SamplingOptions

ParseSpecial = Annotated[
    bool,
    typer.Option(
        "--parse-special",
        help="Read special tokens such as <|im_end|> in prompts and files: only where you trust every text.",
    ),
]

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no statistics.")]


def read_prompt(file: Path | None, prompt: str) -> str:
    """The text of a file, or of stdin for "-", and the prompt after it."""
    text = ""
    if file is not None:
        text = decode_text(sys.stdin.buffer.read(), "stdin") if str(file) == "-" else read_text_file(file)
    text = "\n\n".join(part for part in (text, prompt) if part)
    if not text:
        raise typer.BadParameter("give a prompt with -p, a text with -f, or both")
    return text


def prompt_tokens(llm: Llama, text: str, system: str | None, raw: bool) -> list[int]:
    """Tokens of a prompt, in the chat template unless `raw`; all of it is text unless `llm.parse_special`."""
    if raw:
        return llm.tokenize(text, special=llm.parse_special)
    turns: list[ChatMessage] = [{"role": "system", "content": system}] if system else []
    return llm.chat_tokens([*turns, {"role": "user", "content": text}])


def print_answer(llm: Llama, tokens: list[int], sampling: SamplingOptions, quiet: bool) -> None:
    """Print the answer as it comes, and how long it took and what it holds unless `quiet`."""
    timings: Timings | None = None
    with term.prefill_progress(enabled=not quiet) as progress:
        request = sampling.completion_options()
        request["progress"] = progress.update
        for chunk in llm.create_completion(tokens, stream=True, **request):
            progress.close()
            term.answer(chunk["choices"][0]["text"])
            timings = chunk.get("timings")
    term.answer("\n")
    if timings and not quiet:
        term.note("; ".join(filter(None, (term.format_timings(timings), term.format_memory(llm)))))
