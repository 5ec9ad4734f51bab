"""`infllm read`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .._files import decode_text, read_text_file
from .._sessions import check_output
from ..llama import Llama
from . import terminal as term
from .conversation import Conversation, load_conversation

_N_SAVED = 8192  # tokens: so many are lost at most, however a program ends


class _Pause(Exception):
    """Enough is read to be saved."""


def _read(llm: Llama, tokens: list[int], save: Callable[[], None]) -> None:
    """Make the stored tokens `tokens`, and save now and then: what is interrupted goes on unchanged."""
    n_saved, n_cached = llm.n_tokens, -1
    with term.prefill_progress() as progress:

        def update(n_done: int, n_total: int) -> None:
            nonlocal n_saved, n_cached
            if n_cached < 0:
                n_cached = len(tokens) - n_total
                n_saved = min(n_saved, n_cached)
            progress.update(llm.n_tokens - n_cached, len(tokens) - n_cached)
            if n_saved + _N_SAVED <= llm.n_tokens < len(tokens):
                n_saved = llm.n_tokens
                raise _Pause

        while True:
            try:
                llm.prefill(tokens, progress=update)
                return
            except _Pause:
                save()


def read_files(llm: Llama, paths: Sequence[Path], output: Path, system: str | None) -> None:
    """Read files into a session, or what an interrupted run has left to be read of them.

    It is saved every 8,192 tokens, too, so that no more are lost when the process is killed.

    Raises
    ------
    KeyboardInterrupt
        After what was read so far is saved.
    OSError, ValueError
        When a file cannot be read or is no text, or the session cannot be written.
    """
    texts = [
        decode_text(sys.stdin.buffer.read(), "stdin") if str(path) == "-" else read_text_file(path)
        for path in (Path(os.path.expanduser(path)) for path in paths)
    ]
    chat = Conversation.begin(system)
    check_output(llm, output)
    if output.exists():
        load_conversation(llm, output)  # what it has of this text is not read again

    def save(chat: Conversation) -> None:
        with term.console.status(f"saving {output}"):
            llm.save_session(output, chat.to_data())

    try:
        longer = chat.with_text("\n\n".join(texts))
        _read(llm, longer.prefix(llm), lambda: llm.save_session(output, chat.to_data()))
    except KeyboardInterrupt:
        save(chat)
        term.note(f"\n{llm.n_tokens:,} tokens are saved in {output}: the same command goes on from there")
        raise
    save(longer)
    term.note(f"{output}: {llm.n_tokens:,} tokens; ask by infllm run --session {output} -p QUESTION")
