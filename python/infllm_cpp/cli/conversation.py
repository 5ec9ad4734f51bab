"""A chat, and texts that its next question is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._sessions import open_session
from .._stored import n_common
from ..types import ChatMessage

if TYPE_CHECKING:
    from ..llama import Llama


@dataclass
class Conversation:
    """Messages so far, and files for the next one: some templates refuse two user messages in a row."""

    messages: list[ChatMessage] = field(default_factory=list)
    files: str = ""

    @classmethod
    def begin(cls, system: str | None) -> Conversation:
        """An empty one, with a system message if there is one."""
        return cls([{"role": "system", "content": system}] if system is not None else [])

    @staticmethod
    def is_data(data: Any) -> bool:
        """Whether it is as `to_data` makes it."""
        return (
            isinstance(data, dict)
            and data.keys() == {"messages", "files"}
            and isinstance(data["files"], str)
            and isinstance(data["messages"], list)
            and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in data["messages"])
        )

    @classmethod
    def from_data(cls, data: Any) -> Conversation:
        """What `to_data` made; ValueError where it is something else."""
        if not cls.is_data(data):
            raise ValueError("the session has no chat: it was saved by a program, not by infllm chat or read")
        return cls(data["messages"], data["files"])

    def to_data(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"messages": self.messages, "files": self.files}

    def n_questions(self) -> int:
        """Messages of the user."""
        return sum(message["role"] == "user" for message in self.messages)

    def asked(self, question: str) -> list[ChatMessage]:
        """The messages, and a question about the files."""
        return [*self.messages, {"role": "user", "content": self.files + question}]

    def with_text(self, text: str) -> Conversation:
        """The same, and a text that the next question is about."""
        return Conversation(self.messages, f"{self.files}{text}\n\n")

    def prefix(self, llm: Llama) -> list[int]:
        """Tokens that the prompt begins with, whatever is asked."""
        one, other = (llm.chat_tokens(self.asked(question)) for question in ("a", "?"))
        return one[: n_common(one, other)]


def load_conversation(llm: Llama, path: Path) -> Conversation:
    """Load a session that has a chat; ValueError where there is none, else as `Llama.load_session`."""
    session, notes = open_session(path)
    chat = Conversation.from_data(notes.data)  # before the context changes
    llm._become(path, session, notes)
    return chat
