"""`infllm read`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import _terminal as term
from ._conversation import Conversation, load_conversation
from ._files import decode_text, read_text_file
from ._sessions import check_output
from .llama import Llama


def read_files(llm: Llama, paths: Sequence[Path], output: Path, system: str | None) -> None:
    """Read files into a session, or what an interrupted run has left to be read of them.

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
        with term.prefill_progress() as progress:
            longer = chat.with_text("\n\n".join(texts))
            llm.prefill(longer.prefix(llm), progress=progress.update)
    except KeyboardInterrupt:
        save(chat)
        term.note(f"\n{llm.n_tokens:,} tokens are saved in {output}: the same command goes on from there")
        raise
    save(longer)
    term.note(f"{output}: {llm.n_tokens:,} tokens; ask by infllm run --session {output} -p QUESTION")
