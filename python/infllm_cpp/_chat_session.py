"""The loop of `infllm chat`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from . import _terminal as term
from ._files import read_text_file
from ._message_input import message_input
from ._paging import format_paging
from ._stored import n_common
from .llama import CompletionOptions, Llama
from .types import ChatMessage, Timings

HELP = """\
/file PATH  put a text file into the context; ask about it afterwards
/stats      memory and speed
/reset      forget the chat
/help       this
/quit       leave, as does Ctrl-D
A text of several lines that is pasted is one message. Ctrl-C interrupts an answer, or reading."""


class ChatSession:
    """A chat with its history.

    Parameters
    ----------
    llm : Llama
    system : str or None
        System message.
    options : CompletionOptions
        For every answer.
    """

    def __init__(self, llm: Llama, system: str | None, options: CompletionOptions) -> None:
        self._llm = llm
        self._system = system
        self._options = options
        self._timings: Timings | None = None
        self._reset()

    def _reset(self) -> None:
        self._messages: list[ChatMessage] = []
        if self._system is not None:
            self._messages.append({"role": "system", "content": self._system})
        self._files = ""  # texts for the next question: some templates refuse two user messages in a row

    def run(self) -> None:
        """Answer lines from stdin until it ends."""
        if sys.stdin.isatty():
            term.note("/help for help, Ctrl-D to leave")
        read = message_input()

        while True:
            try:
                message = read()
                if message is None:
                    return
                if message and not self._handle(message):
                    return
            except KeyboardInterrupt:
                term.note("\n(interrupted; /quit or Ctrl-D leaves)")
            except (OSError, ValueError, RuntimeError, MemoryError) as err:
                term.error(err)

    def _handle(self, message: str) -> bool:
        """Do what a message says; False: leave."""
        command, _, argument = message.partition(" ")
        if not message.startswith("/") or "\n" in message:
            self._answer(message)
        elif command == "/file":
            self._read_file(argument.strip().strip("\"'"))
        elif command == "/stats":
            self._print_stats()
        elif command == "/reset":
            self._reset()
            self._llm.reset()
            term.note("the chat is forgotten")
        elif command == "/help":
            term.note(HELP)
        elif command in ("/quit", "/exit"):
            return False
        else:
            term.error(f"{message} is not a command: see /help")
        return True

    def _answer(self, question: str) -> None:
        turn: ChatMessage = {"role": "user", "content": self._files + question}
        text = ""
        try:
            with term.prefill_progress() as progress:
                options = self._options.copy()
                options["progress"] = progress.update
                for chunk in self._llm.create_chat_completion(
                    [*self._messages, turn], stream=True, **options
                ):
                    choice = chunk["choices"][0]
                    if new := choice["delta"].get("content"):
                        progress.close()
                        text += new
                        term.answer(new)
                    self._timings = chunk.get("timings", self._timings)
                    if choice["finish_reason"] == "length":
                        self._explain_length()
        finally:
            # an interrupted answer is part of the chat, as far as it was given
            if text:
                term.answer("\n")
                self._messages += [turn, {"role": "assistant", "content": text}]
                self._files = ""

    def _explain_length(self) -> None:
        if self._llm.n_tokens >= self._llm.n_ctx():
            term.note(f"\n(n_ctx = {self._llm.n_ctx()} is full: /reset, or a larger --n-ctx)")
        else:
            term.note("\n(--max-tokens is reached)")

    def _read_file(self, name: str) -> None:
        if not name:
            raise ValueError("/file needs the path of a text file: /file PATH")
        path = Path(os.path.expanduser(name))
        text = read_text_file(path)
        files = f"{self._files}{text}\n\n"

        # store what the next prompt will begin with, whatever the question
        one, other = (
            self._llm.chat_tokens([*self._messages, {"role": "user", "content": files + question}])
            for question in ("a", "?")
        )
        tokens = one[: n_common(one, other)]
        try:
            with term.prefill_progress() as progress:
                self._llm.prefill(tokens, progress=progress.update)
        except KeyboardInterrupt:
            term.note(
                f"\n(interrupted: {path} does not count, questions will not see it; "
                f"{self._llm.n_tokens:,} of {len(tokens):,} tokens are kept, and the same /file goes on "
                f"from there if it comes next)"
            )
            return
        self._files = files
        term.note(f"{path}: {len(tokens):,} tokens are stored; ask about it")

    def _print_stats(self) -> None:
        llm = self._llm
        term.note(
            f"tokens {llm.n_tokens:,} of n_ctx = {llm.n_ctx():,}, training length {llm.n_ctx_train():,}"
        )
        if self._timings:
            term.note(f"last answer: {term.format_timings(self._timings)}")
        stats = llm.stats()
        if stats is None:
            term.note("plain llama.cpp: all tokens are resident")
            return
        n_layer = stats.n_layer
        term.note(
            f"{term.format_memory(llm)}, representative keys {term.format_bytes(stats.bytes_repr)}\n"
            f"resident tokens {stats.n_tokens_resident:,}; "
            f"blocks per layer {stats.n_blocks // n_layer:,}, slots per layer {stats.n_slots // n_layer:,}\n"
            f"blocks selected {stats.n_selected:,}: {stats.n_hit:,} hits, {stats.n_page_in:,} page-ins "
            f"({term.format_bytes(stats.bytes_paged_in)})\n"
            f"{format_paging(stats)}"
        )
