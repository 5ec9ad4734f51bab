"""Render a chat with the template in the GGUF."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from . import _core
from .types import ChatMessage

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def render(
    messages: Sequence[ChatMessage],
    template: str | None,
    *,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
) -> _core.ChatPrompt:
    """Render `messages` into a prompt, by llama.cpp's engine for templates.

    Parameters
    ----------
    messages : sequence of ChatMessage
        The chat so far.
    template : str or None
        Jinja template as in ``tokenizer.chat_template``. ``None``: ChatML, with a warning.
    bos_token, eos_token : str
        Text of the model's special tokens, for the template.
    add_generation_prompt : bool
        End with what begins an answer of the assistant.

    Returns
    -------
    ChatPrompt
        Its ``text()``, and its tokens by ``tokenize(model)``.

    Raises
    ------
    ValueError
        When a message is malformed, or the template refuses the chat (some want alternating roles).
    """
    plain = [_flatten(message, i) for i, message in enumerate(messages)]
    if not plain:
        raise ValueError("messages is empty: a chat needs at least one message")

    if template is None:
        warnings.warn("the model has no chat template: ChatML is used, which it may not know", stacklevel=3)
        template = _CHATML
    return _core.ChatPrompt(
        template,
        inputs={"messages": plain},
        own={
            "bos_token": bos_token,
            "eos_token": eos_token,
            "add_generation_prompt": add_generation_prompt,
        },
    )


def _flatten(message: ChatMessage, i: int) -> dict[str, Any]:
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
    return {**message, "content": content or ""}
