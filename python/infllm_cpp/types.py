"""Shapes of the dictionaries that completions return: those of the OpenAI API, as in llama-cpp-python.

Additions: ``usage.prompt_tokens_details.cached_tokens`` (OpenAI's name for prompt tokens that were stored
already) and ``timings`` (llama-server's names).
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

FinishReason = Literal["stop", "length", "tool_calls"]


class FunctionCall(TypedDict):
    """`arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call that an answer asks for."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatTool(TypedDict):
    """A tool: its function has a `name`, a `description`, and `parameters`, a JSON schema."""

    type: Literal["function"]
    function: dict[str, Any]


class _ChatMessageBase(TypedDict):
    role: str
    content: str | list[dict[str, Any]] | None


class ChatMessage(_ChatMessageBase, total=False):
    """One turn of a chat; `content` is text, or OpenAI's list of ``{"type": "text", "text": ...}`` parts.

    An answer has `tool_calls` and `reasoning_content`, if any; a result (role ``"tool"``) the `tool_call_id`
    and `name` of what was called.
    """

    tool_calls: list[ToolCall]
    tool_call_id: str
    name: str
    reasoning_content: str


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Timings(TypedDict):
    """Tokens evaluated and time taken, milliseconds."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float


class CompletionLogprobs(TypedDict):
    """Of each token; `text_offset` is where it begins in the text."""

    tokens: list[str]
    text_offset: list[int]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]


class TopLogprob(TypedDict):
    """A token, its UTF-8 bytes, and its log probability in nats."""

    token: str
    bytes: list[int]
    logprob: float


class ChatTokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[ChatTokenLogprob]
    refusal: None


class CompletionChoice(TypedDict):
    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    timings: Timings


class _CompletionChunkBase(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]


class CompletionChunk(_CompletionChunkBase, total=False):
    """A piece of a streamed completion; `usage` and `timings` come with the last one."""

    usage: Usage
    timings: Timings


class _AssistantMessageBase(TypedDict):
    role: Literal["assistant"]
    content: str | None


class AssistantMessage(_AssistantMessageBase, total=False):
    """`content` is None where an answer is calls alone."""

    reasoning_content: str
    tool_calls: list[ToolCall]


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings


class FunctionCallDelta(TypedDict, total=False):
    name: str
    arguments: str


class ToolCallDelta(TypedDict, total=False):
    """More of the call with this index; `id`, `type` and the name come first."""

    index: int
    id: str
    type: Literal["function"]
    function: FunctionCallDelta


class ChatDelta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str
    reasoning_content: str
    tool_calls: list[ToolCallDelta]


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class _ChatChunkBase(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]


class ChatCompletionChunk(_ChatChunkBase, total=False):
    """A piece of a streamed chat completion; `usage` and `timings` come with the last one."""

    usage: Usage
    timings: Timings


class Embedding(TypedDict):
    """Of a text, or with ``pooling_type="none"`` of each of its tokens."""

    object: Literal["embedding"]
    embedding: list[float] | list[list[float]]
    index: int


class EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class CreateEmbeddingResponse(TypedDict):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
