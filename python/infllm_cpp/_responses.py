"""Pieces of text as the dictionaries of the OpenAI API, see `types`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator

from . import _core
from ._generation import Piece
from ._sampling import TokenLogprob
from .types import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    ChatTokenLogprob,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    FinishReason,
    ToolCall,
    TopLogprob,
)

TokenBytes = Callable[[int], bytes]


def completion_chunks(
    model: str, prefix: str, pieces: Iterator[Piece], token_bytes: TokenBytes
) -> Iterator[CompletionChunk]:
    """What a stream gives; the first chunk's text begins with `prefix`."""
    head = _Head(f"cmpl-{uuid.uuid4()}", model)
    offset = len(prefix)
    for piece in pieces:
        logprobs = None
        if piece.tokens is not None:
            logprobs, offset = _completion_logprobs(piece.tokens, offset, token_bytes)
        chunk: CompletionChunk = {
            "id": head.id,
            "object": "text_completion",
            "created": head.created,
            "model": head.model,
            "choices": [
                {
                    "text": prefix + piece.text,
                    "index": 0,
                    "logprobs": logprobs,
                    "finish_reason": piece.finish_reason,
                }
            ],
        }
        prefix = ""
        if piece.usage and piece.timings:
            chunk["usage"] = piece.usage
            chunk["timings"] = piece.timings
        yield chunk


def _text(token: int, token_bytes: TokenBytes) -> str:
    return token_bytes(token).decode("utf-8", errors="replace")


def _completion_logprobs(
    tokens: list[TokenLogprob], offset: int, token_bytes: TokenBytes
) -> tuple[CompletionLogprobs, int]:
    out: CompletionLogprobs = {"tokens": [], "text_offset": [], "token_logprobs": [], "top_logprobs": []}
    for drawn in tokens:
        text = _text(drawn.token, token_bytes)
        out["tokens"].append(text)
        out["text_offset"].append(offset)
        out["token_logprobs"].append(drawn.logprob)
        out["top_logprobs"].append({_text(token, token_bytes): value for token, value in drawn.top})
        offset += len(text)
    return out, offset


def _chat_logprobs(tokens: list[TokenLogprob] | None, token_bytes: TokenBytes) -> ChatLogprobs | None:
    if tokens is None:
        return None

    def item(token: int, logprob: float) -> TopLogprob:
        return {
            "token": _text(token, token_bytes),
            "bytes": list(token_bytes(token)),
            "logprob": logprob,
        }

    content: list[ChatTokenLogprob] = [
        {**item(t.token, t.logprob), "top_logprobs": [item(*top) for top in t.top]} for t in tokens
    ]
    return {"content": content, "refusal": None}


def chat_chunks(
    model: str, pieces: Iterator[Piece], token_bytes: TokenBytes, answer: _core.ChatAnswer, live: bool
) -> Iterator[ChatCompletionChunk]:
    """What a stream of a chat gives: the role, what `answer` reads in the text, and how it ended.

    Unless `live` the text is read when it is complete.
    """
    head = _Head(f"chatcmpl-{uuid.uuid4()}", model)

    def chunk(
        delta: ChatDelta,
        finish_reason: FinishReason | None = None,
        logprobs: ChatLogprobs | None = None,
    ) -> ChatCompletionChunk:
        return {
            "id": head.id,
            "object": "chat.completion.chunk",
            "created": head.created,
            "model": head.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}],
        }

    yield chunk({"role": "assistant"})
    text = ""
    has_calls = False
    for piece in pieces:
        text += piece.text
        is_final = piece.usage is not None
        deltas: list[ChatDelta] = []
        if is_final or (live and text):
            deltas = answer.push(text, is_final and piece.finish_reason == "stop")
            text = ""
        logprobs = _chat_logprobs(piece.tokens, token_bytes)
        if logprobs and not deltas:
            deltas = [{"content": ""}]
        for delta in deltas:
            for call in delta.get("tool_calls", ()):
                has_calls = True
                if call.get("id") == "":
                    call["id"] = f"call_{uuid.uuid4().hex[:24]}"
            yield chunk(delta, logprobs=logprobs)
            logprobs = None
        if piece.usage and piece.timings:
            ended = piece.finish_reason
            last = chunk({}, "tool_calls" if has_calls and ended == "stop" else ended)
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
    logprobs: CompletionLogprobs | None = None
    for chunk in chunks:
        choice = chunk["choices"][0]
        text += choice["text"]
        more = choice["logprobs"]
        if logprobs is None:
            logprobs = more
        elif more is not None:
            logprobs = {
                "tokens": logprobs["tokens"] + more["tokens"],
                "text_offset": logprobs["text_offset"] + more["text_offset"],
                "token_logprobs": logprobs["token_logprobs"] + more["token_logprobs"],
                "top_logprobs": logprobs["top_logprobs"] + more["top_logprobs"],
            }
    whole: CompletionChoice = {**choice, "text": text, "logprobs": logprobs}
    return {**chunk, "choices": [whole]}  # type: ignore[typeddict-item]


def join_chat(chunks: Iterator[ChatCompletionChunk]) -> ChatCompletion:
    """The chat completion that a stream of `chunks` adds up to."""
    content = reasoning = ""
    calls: list[ToolCall] = []
    logprobs: ChatLogprobs | None = None
    for chunk in chunks:
        choice = chunk["choices"][0]
        delta = choice["delta"]
        content += delta.get("content", "")
        reasoning += delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(calls):
                calls.append(
                    {"id": call["id"], "type": "function", "function": {"name": "", "arguments": ""}}
                )
            function = calls[call["index"]]["function"]
            function["name"] += call["function"].get("name", "")
            function["arguments"] += call["function"].get("arguments", "")
        if choice["logprobs"] is not None:
            so_far = logprobs["content"] if logprobs else []
            logprobs = {"content": so_far + choice["logprobs"]["content"], "refusal": None}
    message: AssistantMessage = {"role": "assistant", "content": None if calls and not content else content}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return {
        "id": chunk["id"],
        "object": "chat.completion",
        "created": chunk["created"],
        "model": chunk["model"],
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": logprobs,
                "finish_reason": chunk["choices"][0]["finish_reason"],
            }
        ],
        "usage": chunk["usage"],
        "timings": chunk["timings"],
    }
