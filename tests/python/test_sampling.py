"""Parameters of completions that decide which token is next: llama-cpp-python's names and meaning."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from infllm_cpp import Llama, LlamaGrammar

PROMPT = "The sky is blue, the grass is"
GREEDY: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["colour", "n"],
    "additionalProperties": False,
}


def text(llm: Llama, prompt: str | list[int] = PROMPT, **options: Any) -> str:
    return llm(prompt, **{**GREEDY, **options})["choices"][0]["text"]


def test_a_grammar_is_followed(llm: Llama) -> None:
    grammar = 'root ::= " " ("yes" | "no") "!"'
    assert text(llm, grammar=grammar) in (" yes!", " no!")
    assert text(llm, grammar=LlamaGrammar.from_string(grammar), temperature=1.5, seed=3) in (" yes!", " no!")
    for wrong in ("root ::= (", "not a rule"):
        with pytest.raises(ValueError, match="grammar is not GBNF"):
            llm(PROMPT, grammar=wrong)
    with pytest.raises(ValueError, match="the grammar is empty"):
        llm(PROMPT, grammar=" ")
    with pytest.raises(TypeError, match="grammar = 1 is neither"):
        llm(PROMPT, grammar=1)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        {"type": "json_object", "schema": SCHEMA},
    ],
)
def test_an_answer_has_the_shape_of_a_schema(llm: Llama, response_format: dict[str, Any]) -> None:
    messages: Any = [{"role": "user", "content": "Which colour has grass, and how many letters has it?"}]
    answer = llm.create_chat_completion(messages, max_tokens=48, response_format=response_format, seed=1)
    content = json.loads(answer["choices"][0]["message"]["content"])
    assert content["colour"] in ("red", "green")
    assert 0 <= content["n"] <= 9

    any_object = llm.create_chat_completion(
        messages, max_tokens=16, response_format={"type": "json_object"}, temperature=0
    )
    assert any_object["choices"][0]["message"]["content"].lstrip().startswith("{")


def test_what_is_no_format_is_refused(llm: Llama) -> None:
    messages: Any = [{"role": "user", "content": "Hello"}]
    for wrong, message in (
        ({"type": "xml"}, "response_format has the type 'xml'"),
        ({"type": "json_schema"}, "response_format has no JSON schema"),
        ({"type": "json_object", "schema": {"$ref": "#/nowhere"}}, "json_schema cannot be made a grammar"),
    ):
        with pytest.raises(ValueError, match=message):
            llm.create_chat_completion(messages, response_format=wrong)
    with pytest.raises(ValueError, match="are both given"):
        llm.create_chat_completion(messages, response_format={"type": "json_object"}, grammar='root ::= "a"')


def test_biases_are_added(llm: Llama) -> None:
    (first,) = llm.tokenize(text(llm, max_tokens=1), add_bos=False)
    assert llm.tokenize(text(llm, max_tokens=1, logit_bias={first: -math.inf}), add_bos=False) != [first]
    (wanted,) = llm.tokenize(" zebra", add_bos=False)[:1]
    piece = llm.detokenize([wanted]).decode()
    for key in (wanted, str(wanted)):
        assert text(llm, max_tokens=3, logit_bias={key: 1000}) == piece * 3
    for wrong, error in (({10**9: 1}, ValueError), ({"x": 1}, TypeError), ({1: math.nan}, ValueError)):
        with pytest.raises(error, match="logit_bias"):
            llm(PROMPT, logit_bias=wrong)


def test_processors_change_logits_and_leave_those_of_the_model(llm: Llama) -> None:
    (wanted,) = llm.tokenize(" zebra", add_bos=False)[:1]
    seen: list[int] = []

    def force(tokens: Any, logits: Any) -> Any:
        seen.append(len(tokens))
        logits[:] = -np.inf
        logits[wanted] = 0
        return logits

    n_prompt = len(llm.tokenize(PROMPT))
    assert text(llm, max_tokens=3, logits_processor=force) == llm.detokenize([wanted]).decode() * 3
    assert seen == [n_prompt, n_prompt + 1, n_prompt + 2]
    expected = text(llm)
    assert text(llm, logits_processor=[lambda _, x: x]) == expected
    with pytest.raises(ValueError, match="logits_processor returned"):
        llm(PROMPT, logits_processor=lambda _, x: x[:3])
    with pytest.raises(TypeError, match="logits_processor = 3 cannot be called"):
        llm(PROMPT, logits_processor=[3])  # type: ignore[list-item]
    assert text(llm) == expected


def test_criteria_end_a_text(llm: Llama) -> None:
    whole = llm.tokenize(text(llm), add_bos=False)
    n_prompt = len(llm.tokenize(PROMPT))
    answer = llm(PROMPT, **GREEDY, stopping_criteria=[lambda tokens, _: len(tokens) == n_prompt + 3])
    assert llm.tokenize(answer["choices"][0]["text"], add_bos=False) == whole[:3]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 3


def test_log_probabilities_are_those_of_the_logits(llm: Llama) -> None:
    answer = llm(PROMPT, **GREEDY, logprobs=3)
    choice = answer["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs is not None
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == [
        len("".join(logprobs["tokens"][:i])) for i in range(len(logprobs["tokens"]))
    ]

    tokens = llm.tokenize(PROMPT)
    for i, token in enumerate(llm.tokenize(choice["text"], add_bos=False)):
        llm.prefill(tokens)
        logits = llm.logits.astype(np.float64)
        expected = logits - logits.max()
        expected -= np.log(np.exp(expected).sum())
        assert logprobs["token_logprobs"][i] == pytest.approx(expected[token], abs=2e-3)
        top = logprobs["top_logprobs"][i]
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert len(top) == 3
        assert max(top.values()) == logprobs["token_logprobs"][i]  # greedy
        tokens.append(token)
    assert llm(PROMPT, **GREEDY)["choices"][0]["logprobs"] is None


def test_log_probabilities_of_a_chat(llm: Llama) -> None:
    messages: Any = [{"role": "user", "content": "Say hello."}]
    options: dict[str, Any] = {**GREEDY, "logprobs": True, "top_logprobs": 2}
    choice = llm.create_chat_completion(messages, **options)["choices"][0]
    assert choice["logprobs"] is not None
    content = choice["logprobs"]["content"]
    assert "".join(item["token"] for item in content) == choice["message"]["content"]
    assert all(bytes(item["bytes"]).decode() == item["token"] for item in content)
    assert all(len(item["top_logprobs"]) == 2 for item in content)

    streamed = [
        item
        for chunk in llm.create_chat_completion(messages, **options, stream=True)
        for item in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == content
    with pytest.raises(ValueError, match="top_logprobs = -1"):
        llm.create_chat_completion(messages, logprobs=True, top_logprobs=-1)


def test_other_ways_to_draw(llm: Llama) -> None:
    for options in ({"typical_p": 0.5}, {"mirostat_mode": 1}, {"mirostat_mode": 2}):
        drawn: dict[str, Any] = {"temperature": 1.5, "seed": 7, "max_tokens": 12, **options}
        assert text(llm, **drawn) == text(llm, **drawn)
        assert text(llm, **drawn) != text(llm, **{**drawn, "seed": 8})
    for name, value in (("typical_p", 2), ("mirostat_mode", 3), ("mirostat_tau", -1), ("mirostat_eta", 2)):
        with pytest.raises(ValueError, match=f"{name} = {value}"):
            llm(PROMPT, **{name: value})  # type: ignore[call-overload]


def test_names(llm: Llama) -> None:
    assert llm(PROMPT, max_tokens=1, model="mine")["model"] == "mine"
    with pytest.raises(ValueError, match="suffix has no use: this model"):
        llm("def f(x):", suffix="return y")
