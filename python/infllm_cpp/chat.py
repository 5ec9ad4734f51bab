"""A chat as llama.cpp's templates take it: OpenAI's messages and tools, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .types import ChatMessage, ChatTool

ReasoningFormat = Literal["auto", "none"]
ToolChoice = Literal["auto", "none", "required"] | Mapping[str, Any]

_TEXTS = ("name", "tool_call_id", "reasoning_content")


def request(
    messages: Sequence[ChatMessage],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[ChatTool] | None = None,
    tool_choice: ToolChoice | None = None,
    parallel_tool_calls: bool | None = None,
    json_schema: Mapping[str, Any] | None = None,
    reasoning_format: ReasoningFormat = "auto",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """What `_core.ChatTemplates.apply` takes. Parameters: see `Llama.create_chat_completion`.

    Raises
    ------
    ValueError
        When a message, a tool or a choice is malformed; it is named.
    """
    if reasoning_format not in ("auto", "none"):
        raise ValueError(f"reasoning_format = {reasoning_format!r} is unknown: use 'auto' or 'none'")
    out: dict[str, Any] = {
        "messages": [_message(message, i) for i, message in enumerate(messages)],
        "add_generation_prompt": add_generation_prompt,
        "reasoning_format": "deepseek" if reasoning_format == "auto" else "none",
        "chat_template_kwargs": dict(chat_template_kwargs or {}),
    }
    if not out["messages"]:
        raise ValueError("messages is empty: a chat needs at least one message")
    if tools:
        out["tools"], out["tool_choice"] = _choose(
            [_tool(tool, i) for i, tool in enumerate(tools)], tool_choice
        )
        if parallel_tool_calls is not None:
            out["parallel_tool_calls"] = parallel_tool_calls
    elif tool_choice not in (None, "auto", "none"):
        raise ValueError(f"tool_choice = {tool_choice!r} and there are no tools: give some")
    if json_schema is not None:
        out["json_schema"] = json_schema
    try:
        text = json.dumps(out, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as err:
        raise ValueError(
            f"messages, tools or chat_template_kwargs cannot be written as JSON: {err}"
        ) from None
    return text.encode("utf-8", errors="replace").decode()


def _message(message: ChatMessage, i: int) -> dict[str, Any]:
    """A message with its content as one string: the templates of text models know nothing else."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f'messages[{i}] = {message!r}: a message is {{"role": str, "content": str}}')

    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if part.get("type") == "text" else None for part in content]
        if any(not isinstance(part, str) for part in parts):
            raise ValueError(f"messages[{i}] has a part that is not text: only text is supported")
        content = "".join(str(part) for part in parts)
    if content is not None and not isinstance(content, str):
        raise ValueError(f"messages[{i}] has a content of type {type(content).__name__}: it must be a string")

    out: dict[str, Any] = {"role": message["role"], "content": content or ""}
    for name in _TEXTS:
        value = message.get(name)
        if value is not None and not isinstance(value, str):
            raise ValueError(
                f"messages[{i}] has a {name} of type {type(value).__name__}: it must be a string"
            )
        if value:
            out[name] = value
    calls = message.get("tool_calls") or []
    if not isinstance(calls, (list, tuple)):
        raise ValueError(f"messages[{i}] has tool_calls of type {type(calls).__name__}: it must be a list")
    if calls:
        out["tool_calls"] = [_call(call, i) for call in calls]
    return out


def _call(call: Any, i: int) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(
            f"messages[{i}] has the tool call {call!r}: "
            '{"type": "function", "function": {"name": str, "arguments": str}} is one'
        )
    out: dict[str, Any] = {
        "type": "function",
        "function": {"name": function["name"], "arguments": function.get("arguments") or "{}"},
    }
    if isinstance(call.get("id"), str):
        out["id"] = call["id"]
    return out


def _tool(tool: ChatTool, i: int) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(
            f'tools[{i}] = {tool!r}: a tool is {{"type": "function", "function": '
            '{"name": str, "description": str, "parameters": JSON schema}}'
        )
    given = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": {"description": "", "parameters": {}, **given}}


def _choose(tools: list[dict[str, Any]], choice: ToolChoice | None) -> tuple[list[dict[str, Any]], str]:
    """The tools to tell of, and whether one must be called."""
    if choice is None:
        return tools, "auto"
    if isinstance(choice, str) and choice in ("auto", "none", "required"):
        return tools, choice
    name = (choice.get("function") or {}).get("name") if isinstance(choice, Mapping) else None
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if not named:
        names = ", ".join(tool["function"]["name"] for tool in tools)
        raise ValueError(
            f"tool_choice = {choice!r}: use 'auto', 'none', 'required', or "
            f'{{"type": "function", "function": {{"name": one of {names}}}}}'
        )
    return named, "required"
