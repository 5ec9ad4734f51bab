"""The loop of `infllm chat`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

from .._files import read_text_file
from .._format import format_bytes
from .._paging import format_paging
from .._sessions import check_output
from ..config import InfLLMStats
from ..llama import CompletionOptions, Llama
from ..types import Timings
from . import terminal as term
from .conversation import Conversation, load_conversation
from .message_input import message_input

HELP = """\
/file PATH  put a text file into the context; ask about it afterwards
/save PATH  save the chat with all it has read; without PATH: to the file of --session
/load PATH  go on with a chat that was saved, or a text that infllm read has read
/retry      answer the last question again
/edit TEXT  ask TEXT in place of the last question; without TEXT: change it (on a terminal)
/system TEXT  begin anew with a system message; without TEXT: with none
/params     how tokens are drawn; /params NAME VALUE changes it
/stats      memory and speed
/reset      forget the chat
/help       this
/quit       leave, as does Ctrl-D
A text of several lines that is pasted is one message. Ctrl-C interrupts an answer, or reading."""


_PARAMS: dict[str, Callable[[str], float]] = {
    "max_tokens": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repeat_penalty": float,
    "seed": int,
}


class ChatSession:
    """A chat with its history.

    Parameters
    ----------
    llm : Llama
    system : str or None
        System message.
    options : CompletionOptions
        For every answer.
    path : Path or None
        Session file: the chat goes on from there if it exists, and is saved to it.
    markdown : bool
        Answers on a terminal as Markdown; default: as they are.
    history : Path or None
        File of messages, which are brought back by keys on a terminal.
    quiet : bool
        No progress, and no statistics after an answer.
    """

    def __init__(
        self,
        llm: Llama,
        system: str | None,
        options: CompletionOptions,
        path: Path | None = None,
        *,
        markdown: bool = False,
        history: Path | None = None,
        quiet: bool = False,
    ) -> None:
        self._llm = llm
        self._system = system
        self._options = options
        self._timings: Timings | None = None
        self._chat = Conversation.begin(system)
        self._path = path
        self._markdown = markdown
        self._history = history
        self._quiet = quiet
        self._saved: Conversation | None = None
        self._last: tuple[Conversation, str] | None = None  # the last question, and the chat before it
        if path is not None:
            check_output(llm, path)
        if path is not None and path.exists():
            if system is not None:
                raise ValueError(f"system = {system!r}: {path} has its own system message, or none")
            self.load(str(path))
            self._saved = deepcopy(self._chat)

    def run(self) -> None:
        """Answer lines from stdin until it ends, and save the chat if it has a file."""
        try:
            self._run()
        finally:
            self._save_if_new()

    def _save_if_new(self) -> None:
        if self._path is not None and self._chat != self._saved:
            self.save("")

    def _run(self) -> None:
        if sys.stdin.isatty():
            term.note("/help for help, Ctrl-D to leave")
        self._read = message_input(self._history)

        while True:
            try:
                message = self._read("")
                if message is None:
                    return
                if message and not self._handle(message):
                    return
            except KeyboardInterrupt:
                term.note("\n(interrupted; /quit or Ctrl-D leaves)")
                try:
                    self._save_if_new()
                except OSError as err:  # the chat goes on
                    term.error(err)
            except (OSError, ValueError, RuntimeError, MemoryError) as err:
                term.error(err)

    def _handle(self, message: str) -> bool:
        """Do what a message says; False: leave."""
        command, _, argument = message.partition(" ")
        if not message.startswith("/") or "\n" in message:
            self._answer(message)
        elif command == "/file":
            self._read_file(argument.strip().strip("\"'"))
        elif command == "/retry":
            self._ask_again(None)
        elif command == "/edit":
            self._edit(argument.strip())
        elif command == "/system":
            self._system = argument.strip() or None
            self._begin()
            term.note("the chat begins anew" + (", with this system message" if self._system else ""))
        elif command == "/params":
            self._set_params(argument.split())
        elif command == "/stats":
            self._print_stats()
        elif command == "/save":
            self.save(argument.strip().strip("\"'"))
        elif command == "/load":
            self.load(argument.strip().strip("\"'"))
        elif command == "/reset":
            self._begin()
            term.note("the chat is forgotten")
        elif command == "/help":
            term.note(HELP)
        elif command in ("/quit", "/exit"):
            return False
        else:
            term.error(f"{message} is not a command: see /help")
        return True

    def _begin(self) -> None:
        self._chat = Conversation.begin(self._system)
        self._last = None
        self._llm.reset()

    def _edit(self, question: str) -> None:
        if not question and self._last is not None and sys.stdin.isatty():
            question = self._read(self._last[1]) or ""
        if not question:
            raise ValueError("/edit needs the text of a question: /edit TEXT")
        self._ask_again(question)

    def _ask_again(self, question: str | None) -> None:
        """The last question once more, or another one in its place."""
        if self._last is None:
            raise ValueError("nothing was asked yet: a question comes first")
        chat, last = self._chat, self._last
        self._chat, asked = last
        try:
            self._answer(asked if question is None else question)
        finally:
            if self._chat == last[0]:  # there is no answer
                self._chat, self._last = chat, last

    def _set_params(self, words: list[str]) -> None:
        """Change one of the numbers by which tokens are drawn, or print all."""
        values = {name: value for name, value in self._options.items() if name in _PARAMS}
        if words:
            name, value = words[0], " ".join(words[1:])
            if name not in _PARAMS:
                raise ValueError(f"/params {name} is unknown: use {', '.join(_PARAMS)}")
            try:
                values[name] = _PARAMS[name](value)
            except ValueError:
                raise ValueError(f"/params {name} = {value!r} is not a number") from None
            self._options = {**self._options, **values}  # type: ignore[typeddict-item]
        term.note(", ".join(f"{name} = {value}" for name, value in values.items()))

    def _answer(self, question: str) -> None:
        self._last = self._chat, question
        messages = self._chat.asked(question)
        before = self._llm.stats()
        answer = term.begin_answer(self._markdown)
        text, finish_reason, thinks = "", None, False
        timings: Timings | None = None
        try:
            with term.prefill_progress(enabled=not self._quiet) as progress:
                options = self._options.copy()
                options["progress"] = progress.update
                for chunk in self._llm.create_chat_completion(messages, stream=True, **options):
                    choice = chunk["choices"][0]
                    if thought := choice["delta"].get("reasoning_content"):
                        progress.close()
                        term.thought(thought)
                        thinks = True
                    if new := choice["delta"].get("content"):
                        if thinks:
                            term.thought("")
                            thinks = False
                        progress.close()
                        text += new
                        answer.push(new)
                    timings = chunk.get("timings", timings)
                    finish_reason = choice["finish_reason"]
        finally:
            # an interrupted answer is part of the chat, as far as it was given
            if text:
                self._chat = Conversation([*messages, {"role": "assistant", "content": text}])
            if thinks:
                term.thought("")
            answer.close()
        if finish_reason == "length":
            self._explain_length()
        if timings is not None:
            self._timings = timings
            if not self._quiet:
                paged = term.format_page_ins(before, self._llm.stats())
                term.note("; ".join(filter(None, (term.format_timings(timings), paged))))

    def _explain_length(self) -> None:
        if self._llm.n_tokens >= self._llm.n_ctx():
            term.note(f"(n_ctx = {self._llm.n_ctx()} is full: /reset, or a larger --n-ctx)")
        else:
            term.note("(--max-tokens is reached)")

    def _read_file(self, name: str) -> None:
        if not name:
            raise ValueError("/file needs the path of a text file: /file PATH")
        path = Path(os.path.expanduser(name))
        longer = self._chat.with_text(read_text_file(path))
        tokens = longer.prefix(self._llm)
        try:
            with term.prefill_progress(enabled=not self._quiet) as progress:
                self._llm.prefill(tokens, progress=progress.update)
        except KeyboardInterrupt:
            term.note(
                f"\n(interrupted: {path} does not count, questions will not see it; "
                f"{self._llm.n_tokens:,} of {len(tokens):,} tokens are kept, and the same /file goes on "
                f"from there if it comes next)"
            )
            return
        self._chat = longer
        term.note(f"{path}: {len(tokens):,} tokens are stored; ask about it")

    def save(self, name: str) -> None:
        """Save the chat to a session file; "": the one it belongs to."""
        path = Path(os.path.expanduser(name)) if name else self._path
        if path is None:
            raise ValueError("/save needs the path of a session file: /save PATH")
        with term.console.status(f"saving {path}"):
            self._llm.save_session(path, self._chat.to_data())
        if path == self._path:
            self._saved = deepcopy(self._chat)
        term.note(f"saved: {self._llm.n_tokens:,} tokens in {path}")

    def load(self, name: str) -> None:
        """Go on with the chat of a session file."""
        if not name:
            raise ValueError("/load needs the path of a session file: /load PATH")
        path = Path(os.path.expanduser(name))
        self._chat, self._last = load_conversation(self._llm, path), None
        n_questions = self._chat.n_questions()
        term.note(f"{path}: {n_questions} questions so far, {self._llm.n_tokens:,} tokens are stored")

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
            f"{term.format_memory(llm)}, representative keys {format_bytes(stats.bytes_repr)}\n"
            f"resident tokens {stats.n_tokens_resident:,}; "
            f"blocks per layer {stats.n_blocks // n_layer:,}, slots per layer {stats.n_slots // n_layer:,}\n"
            f"blocks selected {stats.n_selected:,}: {stats.n_hit:,} hits, {stats.n_page_in:,} page-ins "
            f"({format_bytes(stats.bytes_paged_in)}{_from_files(stats)})\n"
            f"{format_paging(stats)}"
        )


def _from_files(stats: InfLLMStats) -> str:
    """What came from files, in words; empty if nothing did."""
    if stats.n_page_in_file == 0:
        return ""
    return f"; {stats.n_page_in_file:,} blocks from files, in {stats.us_page_in_file / 1e6:.1f} s"
