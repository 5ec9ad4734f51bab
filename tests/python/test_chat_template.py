"""Rendering of chat templates."""

from __future__ import annotations

from datetime import datetime

import pytest

from infllm_cpp import Llama
from infllm_cpp.chat import render
from infllm_cpp.types import ChatMessage

USER: list[ChatMessage] = [{"role": "user", "content": "Hi"}]


def test_the_models_own_template_is_used(llm: Llama) -> None:
    prompt = llm.chat_prompt([{"role": "system", "content": "Be brief."}, *USER])
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert llm.tokenize_chat(prompt)[0] == llm.tokenize("<|im_start|>", add_bos=False, special=True)[0]


def test_bos_is_not_doubled(llm: Llama) -> None:
    bos = llm.detokenize([llm.token_bos()], special=True).decode()
    tokens = llm.tokenize_chat(f"{bos}Hi")
    assert tokens.count(llm.token_bos()) == 1


def test_the_names_that_templates_expect() -> None:
    template = (
        "{{ bos_token }}{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content | tojson }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}{{ eos_token }}"
    )
    prompt = render([{"role": "user", "content": "<é>"}], template, bos_token="<s>", eos_token="</s>")
    assert prompt == f'<s>{datetime.now().year}"<é>"></s>'


def test_a_template_that_refuses_the_chat_says_why() -> None:
    with pytest.raises(ValueError, match="roles must alternate"):
        render(USER, "{{ raise_exception('roles must alternate') }}")


def test_a_broken_template_is_an_error() -> None:
    with pytest.raises(ValueError, match="chat template failed"):
        render(USER, "{% for %}")


def test_a_template_cannot_reach_python() -> None:
    with pytest.raises(ValueError, match=r"chat template failed.*unsafe"):
        render(USER, "{{ messages.__class__.__mro__ }}")


def test_without_a_template_chatml_is_used_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="no chat template"):
        prompt = render(USER, None)
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_parts_of_text_are_joined() -> None:
    messages: list[ChatMessage] = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    ]
    assert render(messages, "{{ messages[0].content }}") == "ab"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "messages is empty"),
        ([{"content": "Hi"}], r"messages\[0\]"),
        (["Hi"], r"messages\[0\]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "not text"),
        ([{"role": "user", "content": 3}], "must be a string"),
    ],
)
def test_malformed_messages_are_named(messages: list[ChatMessage], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        render(messages, "")
