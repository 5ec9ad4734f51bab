"""Pieces of text as the dictionaries of the OpenAI API, see `types`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

from ._generation import Piece
from .types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    Completion,
    CompletionChunk,
    FinishReason,
)


def completion_chunks(model: str, prefix: str, pieces: Iterator[Piece]) -> Iterator[CompletionChunk]:
    """What a stream gives; the first chunk's text begins with `prefix`."""
    head = _Head(f"cmpl-{uuid.uuid4()}", model)
    for piece in pieces:
        chunk: CompletionChunk = {
            "id": head.id,
            "object": "text_completion",
            "created": head.created,
            "model": head.model,
            "choices": [
                {
                    "text": prefix + piece.text,
                    "index": 0,
                    "logprobs": None,
                    "finish_reason": piece.finish_reason,
                }
            ],
        }
        prefix = ""
        if piece.usage and piece.timings:
            chunk["usage"] = piece.usage
            chunk["timings"] = piece.timings
        yield chunk


def chat_chunks(model: str, pieces: Iterator[Piece]) -> Iterator[ChatCompletionChunk]:
    """What a stream of a chat gives: the role, text, and how it ended."""
    head = _Head(f"chatcmpl-{uuid.uuid4()}", model)

    def chunk(delta: ChatDelta, finish_reason: FinishReason | None = None) -> ChatCompletionChunk:
        return {
            "id": head.id,
            "object": "chat.completion.chunk",
            "created": head.created,
            "model": head.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
        }

    yield chunk({"role": "assistant"})
    for piece in pieces:
        if piece.text:
            yield chunk({"content": piece.text})
        if piece.usage and piece.timings:
            last = chunk({}, piece.finish_reason)
            last["usage"] = piece.usage
            last["timings"] = piece.timings
            yield last


class _Head:
    """What all chunks of a completion share."""

    def __init__(self, id: str, model: str) -> None:
        self.id = id
        self.model = model
        self.created = int(time.time())


def join_completion(chunks: Iterator[CompletionChunk]) -> Completion:
    """The completion that a stream of `chunks` adds up to."""
    text = ""
    for chunk in chunks:
        text += chunk["choices"][0]["text"]
    choice = chunk["choices"][0]
    return {**chunk, "choices": [{**choice, "text": text}]}  # type: ignore[typeddict-item]


def join_chat(chunks: Iterator[ChatCompletionChunk]) -> ChatCompletion:
    """The chat completion that a stream of `chunks` adds up to."""
    content = ""
    for chunk in chunks:
        content += chunk["choices"][0]["delta"].get("content", "")
    return {
        "id": chunk["id"],
        "object": "chat.completion",
        "created": chunk["created"],
        "model": chunk["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content},
                "logprobs": None,
                "finish_reason": chunk["choices"][0]["finish_reason"],
            }
        ],
        "usage": chunk["usage"],
        "timings": chunk["timings"],
    }
