"""`infllm serve` by the clients that people have: each is asked for where it is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import served
from served import TEXT, Server

pytestmark = served.skipped

TEMPLATE = (
    Path(__file__).parents[2] / "third_party/llama.cpp/models/templates/Qwen-Qwen2.5-7B-Instruct.jinja"
)  # one that knows of tools
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Lima"]}},
            "required": ["city"],
        },
    },
}
QUESTION: Any = [{"role": "user", "content": TEXT * 60 + "What colour is the sky?"}]


def test_openai(start: Callable[..., Server]) -> None:
    openai = pytest.importorskip("openai")
    server = start("--parallel", "2", "--", "--chat-template-file", str(TEMPLATE))
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    name = client.models.list().data[0].id
    options = {"model": name, "messages": QUESTION, "max_tokens": 12, "temperature": 0, "seed": 1}

    whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=3)
    assert whole.usage.prompt_tokens > 1000
    assert whole.usage.completion_tokens == 12
    tokens = whole.choices[0].logprobs.content
    assert len(tokens) == 12
    assert all(len(t.top_logprobs) == 3 and t.top_logprobs[0].logprob >= t.logprob - 1e-3 for t in tokens)

    pieces = client.chat.completions.create(**options, stream=True)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content

    # the small model calls none, and this release of llama-server does not force it: tools are in the prompt
    told = client.chat.completions.create(**{**options, "max_tokens": 1}, tools=[WEATHER])
    assert told.usage.prompt_tokens > whole.usage.prompt_tokens + 50

    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    formatted = client.chat.completions.create(
        **{**options, "max_tokens": 64},
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": schema, "strict": True},
        },
    )
    assert json.loads(formatted.choices[0].message.content)["n"] in (1, 2)

    with pytest.raises(openai.BadRequestError, match="context size"):
        client.chat.completions.create(**{**options, "messages": [{"role": "user", "content": TEXT * 1000}]})


def test_anthropic(start: Callable[..., Server]) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=start().url, api_key="none", max_retries=0)
    options = {"model": "any", "messages": QUESTION, "max_tokens": 12, "extra_body": {"temperature": 0}}

    message = client.messages.create(**options)
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) > 1000
    assert message.usage.output_tokens == 12
    with client.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == message.content[0].text


def test_langchain(start: Callable[..., Server]) -> None:
    langchain = pytest.importorskip("langchain_openai")
    url = start().url + "/v1"
    model = langchain.ChatOpenAI(base_url=url, api_key="none", model="any", temperature=0, max_tokens=12)
    answer = model.invoke(QUESTION[0]["content"])
    assert answer.usage_metadata["input_tokens"] > 1000
    assert "".join(piece.content for piece in model.stream(QUESTION[0]["content"])) == answer.content


def test_llama_index(start: Callable[..., Server]) -> None:
    openai_like = pytest.importorskip("llama_index.llms.openai_like")
    model = openai_like.OpenAILike(
        api_base=start().url + "/v1",
        api_key="none",
        model="any",
        is_chat_model=True,
        temperature=0,
        max_tokens=12,
    )
    from llama_index.core.llms import ChatMessage

    answer = model.chat([ChatMessage(**QUESTION[0])])
    *_, last = model.stream_chat([ChatMessage(**QUESTION[0])])
    assert last.message.content == answer.message.content != ""


def test_a_document_is_read_once_for_all_questions(start: Callable[..., Server]) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=start().url + "/v1", api_key="none", max_retries=0)
    for i, question in enumerate(("grass", "sky", "sun")):
        answer = client.chat.completions.create(
            model="any",
            messages=[{"role": "user", "content": TEXT * 480 + f"What colour is the {question}?"}],
            max_tokens=4,
        )
        n_cached = answer.usage.prompt_tokens_details.cached_tokens
        assert answer.usage.prompt_tokens > 10000
        assert n_cached == 0 if i == 0 else n_cached > answer.usage.prompt_tokens - 600
