"""Render a chat with the template in the GGUF."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from . import _core
from .types import ChatMessage


def render(
    messages: Sequence[ChatMessage],
    template: str | None,
    *,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
) -> str:
    """Render `messages` into a prompt.

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
    str

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
        return _core.chat_apply_template(
            "chatml", [(m["role"], m["content"]) for m in plain], add_assistant=add_generation_prompt
        )

    try:
        return (
            _environment()
            .from_string(template)
            .render(
                messages=plain,
                bos_token=bos_token,
                eos_token=eos_token,
                add_generation_prompt=add_generation_prompt,
            )
        )
    except jinja2.TemplateError as err:
        raise ValueError(f"the model's chat template failed: {err}") from err


def _flatten(message: ChatMessage, i: int) -> dict[str, str]:
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
    return {**message, "role": message["role"], "content": content or ""}  # type: ignore[dict-item]


def _environment() -> ImmutableSandboxedEnvironment:
    """What chat templates expect: the names and settings of Hugging Face transformers."""

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def strftime_now(fmt: str) -> str:
        return datetime.now().strftime(fmt)

    def tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
        # jinja2's own escapes for HTML
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    return env
