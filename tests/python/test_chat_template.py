"""Rendering of chat templates."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from infllm_cpp import Llama, _core
from infllm_cpp._loading import load_model
from infllm_cpp.chat import request
from infllm_cpp.types import ChatMessage
from vocabulary import write_vocabulary

USER: list[ChatMessage] = [{"role": "user", "content": "Hi"}]


def render(messages: list[ChatMessage], template: str, **tokens: str) -> _core.ChatPrompt:
    return _core.ChatTemplates(None, template, **tokens).apply(request(messages))


def test_the_models_own_template_is_used(llm: Llama) -> None:
    prompt = llm.chat_prompt([{"role": "system", "content": "Be brief."}, *USER])
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_names_that_templates_expect() -> None:
    template = (
        "{{ bos_token }}{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content | tojson }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}{{ eos_token }}"
    )
    prompt = render([{"role": "user", "content": "<é>"}], template, bos_token="<s>", eos_token="</s>")
    assert prompt.text() == f'<s>{datetime.now().year}"<é>"></s>'


def test_a_template_that_refuses_the_chat_says_why() -> None:
    with pytest.raises(ValueError, match="roles must alternate"):
        render(USER, "{{ raise_exception('roles must alternate') }}")


def test_a_broken_template_is_an_error() -> None:
    with pytest.raises(ValueError, match="chat template failed"):
        render(USER, "{% for %}")


def test_a_template_cannot_reach_python() -> None:
    assert render(USER, "{{ messages.__class__.__mro__ }}").text() == ""


@pytest.mark.parametrize(
    "template",
    [
        "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
        "{{ " + "not " * 15_000 + "1 }}",
        "{{ " + "-" * 60_000 + "1 }}",
        "{{ 1" + "+1" * 30_000 + " }}",
        "{{ x" + "()" * 30_000 + " }}",
        "{% if 1 %}" * 3_000 + "{% endif %}" * 3_000,
        "{% if 0 %}" + "{% elif 0 %}" * 5_000 + "{% endif %}",
        "{{ 1" + " if 0 else 1" * 5_000 + " }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set x = namespace() %}{% set x.x = x %}{{ x | tojson }}",
        "{% set x = [] %}{% set y = x.append(x) %}{{ x | string }}",
        "{{ range(10000000000) }}",
        "{{ 1 is divisibleby 0 }}",
        "{{ (",
        " " * 100_000,
    ],
    ids=lambda template: template[:24],
)
def test_a_hostile_template_is_an_error(template: str) -> None:
    with pytest.raises(ValueError, match="chat template"):
        render(USER, template)


def test_without_a_template_chatml_is_used_with_a_warning(tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "model.gguf", "llama", {})
    model = load_model(tmp_path / "model.gguf", no_alloc=True)
    templates = _core.ChatTemplates(model)
    assert not templates.is_explicit()
    prompt = templates.apply(request(USER))
    assert prompt.text() == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_parts_of_text_are_joined() -> None:
    messages: list[ChatMessage] = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    ]
    assert render(messages, "{{ messages[0].content }}").text() == "ab"


def test_calls_in_messages_reach_the_template() -> None:
    function = {"name": "add", "arguments": '{"a": 1, "b": [2.5, true, null]}'}
    call = {"id": "c1", "type": "function", "function": function}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    template = (
        "{% set c = messages[0].tool_calls[0] %}{{ c.id }} {{ c.function.name }} {{ c.function.arguments }}"
    )
    expected = 'c1 add {"a": 1, "b": [2.5, true, null]}'
    assert render(messages, template).text() == expected  # type: ignore[arg-type]


def test_text_that_is_no_unicode_is_replaced() -> None:
    assert render([{"role": "user", "content": "a\udc80b"}], "{{ messages[0].content }}").text() == "a?b"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "messages is empty"),
        ([{"content": "Hi"}], r"messages\[0\]"),
        (["Hi"], r"messages\[0\]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "not text"),
        ([{"role": "user", "content": 3}], "must be a string"),
        ([{"role": "user", "content": "", "name": 3}], "name of type int"),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}],
            r"messages\[0\] has the tool call",
        ),
        ([{"role": "assistant", "content": "", "tool_calls": 1}], "tool_calls of type int"),
    ],
)
def test_malformed_messages_are_named(messages: list[ChatMessage], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        request(messages)
