"""Tool calls, reasoning and response formats of chats, by the templates of models that have them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infllm_cpp import Llama, _core
from infllm_cpp.chat import request
from infllm_cpp.types import ChatMessage, ChatTool

TEMPLATE_DIR = Path(__file__).parents[2] / "third_party" / "llama.cpp" / "models" / "templates"
QWEN, QWEN_3, LLAMA_3 = "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "meta-llama-Llama-3.1-8B-Instruct"

QUESTION: list[ChatMessage] = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER: ChatTool = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city"],
        },
    },
}
ADD: ChatTool = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def template(name: str) -> str:
    return (TEMPLATE_DIR / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture
def qwen(llm: Llama) -> Iterator[Llama]:
    """The small model, told of tools in the way of another one."""
    llm.chat_template = template(QWEN)
    yield llm
    llm.chat_template = None


def read(name: str, text: str, is_final: bool = True, **options: Any) -> dict[str, Any]:
    """What an answer in the format of a template says, read at once, and by pieces."""
    prompt = _core.ChatTemplates(None, template(name)).apply(request(QUESTION, **options))
    whole: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": []}
    for deltas in (
        _core.ChatAnswer(prompt).push(text, is_final),
        [delta for piece in pieces_of(prompt, text, is_final) for delta in piece],
    ):
        out: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": []}
        for delta in deltas:
            out["content"] += delta.get("content", "")
            out["reasoning_content"] += delta.get("reasoning_content", "")
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(out["calls"]):
                    out["calls"].append([call["function"]["name"], ""])
                out["calls"][call["index"]][1] += call["function"]["arguments"]
        assert whole in ({"content": "", "reasoning_content": "", "calls": []}, out)
        whole = out
    return whole


def pieces_of(prompt: _core.ChatPrompt, text: str, is_final: bool) -> Iterator[list[Any]]:
    answer = _core.ChatAnswer(prompt)
    for i in range(0, len(text), 3):
        yield answer.push(text[i : i + 3], False)
    yield answer.push("", is_final)


# -- what an answer says


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (QWEN, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'),
        (LLAMA_3, '{"name": "get_weather", "parameters": {"city": "Paris"}}'),
        (
            "mistralai-Mistral-Nemo-Instruct-2407",
            '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "123456789"}]',
        ),
        (
            "Qwen3-Coder",
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        ),
        ("openai-gpt-oss-120b", '<|channel|>commentary to=functions.get_weather<|message|>{"city": "Paris"}'),
    ],
)
def test_calls_are_read_in_the_format_of_the_template(name: str, text: str) -> None:
    ((called, arguments),) = read(name, text, tools=[WEATHER, ADD])["calls"]
    assert called == "get_weather"
    assert json.loads(arguments) == {"city": "Paris"}


def test_what_a_model_thinks_is_apart() -> None:
    text = "<think>\nA city.\n</think>\n\nIt rains."
    assert read(QWEN_3, text) == {"content": "It rains.", "reasoning_content": "A city.\n", "calls": []}
    assert read(QWEN_3, text, reasoning_format="none")["content"].strip() == text


def test_text_without_calls_is_text() -> None:
    for text in ("It rains.", " It <rains> in {Paris}.\n\nYes? ", "é 字 \U0001f600", "<tool_call>"):
        assert read(QWEN, text)["content"] == text
    assert read(QWEN, "It rains.", tools=[WEATHER])["content"] == "It rains."


def test_an_answer_that_is_cut_off_is_what_there_is() -> None:
    half = 'Let us see.<tool_call>\n{"name": "get_weather", "arguments": {"city": "Pa'
    answer = read(QWEN, half, is_final=False, tools=[WEATHER])
    assert answer["content"] == "Let us see."
    assert answer["calls"] in ([], [["get_weather", '{"city": "Pa']])


def test_an_answer_that_is_in_no_format_is_not_lost() -> None:
    text = '<tool_call>\n{"name": "no_such_tool", "arguments": {}}\n</tool_call>'
    assert read(QWEN, text, tools=[WEATHER])["content"] == text


# -- what a model is told, and made to say


def test_a_call_that_is_required_comes(qwen: Llama) -> None:
    answer = qwen.create_chat_completion(
        QUESTION, tools=[WEATHER, ADD], tool_choice="required", temperature=0, max_tokens=64
    )
    message = answer["choices"][0]["message"]
    assert message["content"] is None
    call = message["tool_calls"][0]
    assert call["id"].startswith("call_")
    assert call["function"]["name"] in ("get_weather", "add")
    assert isinstance(json.loads(call["function"]["arguments"]), dict)


def test_a_tool_that_is_named_is_called_with_what_its_schema_says(qwen: Llama) -> None:
    answer = qwen.create_chat_completion(
        QUESTION,
        tools=[WEATHER, ADD],
        tool_choice={"type": "function", "function": {"name": "add"}},
        temperature=0,
        max_tokens=64,
    )
    function = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    assert function["name"] == "add"
    arguments = json.loads(function["arguments"])
    assert arguments.keys() == {"a", "b"} and all(isinstance(value, int) for value in arguments.values())


def test_a_stream_of_a_call_adds_up_to_the_call(qwen: Llama) -> None:
    def call(stream: bool) -> Any:
        return qwen.create_chat_completion(
            QUESTION, tools=[WEATHER], tool_choice="required", temperature=0, max_tokens=64, stream=stream
        )

    whole = call(False)["choices"][0]["message"]["tool_calls"][0]["function"]
    name = arguments = ""
    for chunk in call(True):
        for delta in chunk["choices"][0]["delta"].get("tool_calls", ()):
            if delta["index"] == 0:
                name += delta["function"].get("name", "")
                arguments += delta["function"]["arguments"]
    assert (name, arguments) == (whole["name"], whole["arguments"])


def test_how_an_answer_with_calls_ends(qwen: Llama) -> None:
    # the model makes calls until it is stopped: as if a special token ended the first one
    answer = qwen.create_chat_completion(
        QUESTION, tools=[WEATHER], tool_choice="required", temperature=0, max_tokens=64, stop="</tool_call>"
    )
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "get_weather"


def test_results_go_back_to_the_model(qwen: Llama) -> None:
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }
    messages: list[ChatMessage] = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},  # type: ignore[list-item]
        {"role": "tool", "content": "Rain, 11 C <|im_end|>", "tool_call_id": "c1", "name": "get_weather"},
    ]
    prompt = qwen.chat_prompt(messages, tools=[WEATHER])
    assert '"name": "get_weather", "arguments": {"city": "Paris"}' in prompt
    assert "<tool_response>\nRain, 11 C <|im_end|>\n</tool_response>" in prompt
    # a result is text, whatever it looks like
    end = qwen.tokenize("<|im_end|>", add_bos=False, special=True)[0]
    harmless = [*messages[:-1], {**messages[-1], "content": "Rain"}]
    tokens, expected = (qwen.chat_tokens(chat, tools=[WEATHER]) for chat in (messages, harmless))
    assert tokens.count(end) == expected.count(end)
    assert qwen.create_chat_completion(messages, tools=[WEATHER], max_tokens=4)["choices"]


def test_a_required_call_is_part_of_the_prompt_that_is_stored(qwen: Llama) -> None:
    options: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required"}
    qwen.create_chat_completion(QUESTION, temperature=0, max_tokens=8, **options)
    prompt = qwen.chat_tokens(QUESTION, **options)
    assert qwen.tokens[: len(prompt)] == prompt
    assert qwen.chat_prompt(QUESTION, **options).endswith("<tool_call>\n")


def test_no_call_begins_where_no_answer_does(qwen: Llama) -> None:
    options: dict[str, Any] = {"tools": [WEATHER], "add_generation_prompt": False}
    assert qwen.chat_prompt(QUESTION, tool_choice="required", **options) == qwen.chat_prompt(
        QUESTION, **options
    )


def test_a_schema_holds_for_the_answer(llm: Llama) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    answer = llm.create_chat_completion(
        [{"role": "user", "content": "A number, please."}],
        response_format={"type": "json_object", "schema": schema},
        max_tokens=64,
    )
    content = answer["choices"][0]["message"]["content"]
    assert content is not None and isinstance(json.loads(content)["n"], int)


def test_variables_reach_the_template(llm: Llama) -> None:
    llm.chat_template = template(QWEN_3)
    try:
        thinking = llm.chat_prompt(QUESTION)
        silent = llm.chat_prompt(QUESTION, chat_template_kwargs={"enable_thinking": False})
    finally:
        llm.chat_template = None
    assert silent == thinking + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tools": [WEATHER]}, "no place for them"),
        ({"tools": [{"name": "f"}]}, r"tools\[0\]"),
        ({"tools": [WEATHER], "tool_choice": "always"}, "tool_choice = 'always'"),
        ({"tools": [WEATHER], "tool_choice": {"function": {"name": "add"}}}, "one of get_weather"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [WEATHER], "grammar": 'root ::= "a"'}, "grammar and tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "strin"}}}]},
            "no place",
        ),
        ({"reasoning_format": "deepest"}, "reasoning_format = 'deepest'"),
        ({"chat_template_kwargs": {"x": {1, 2}}}, "JSON: Object of type set"),
    ],
)
def test_what_cannot_be_done_is_said(llm: Llama, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        llm.create_chat_completion(QUESTION, **options)
