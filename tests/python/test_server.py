"""`infllm serve`: llama-server with the InfLLM memory, as clients see it."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import served
from conftest import Run
from infllm_cpp import InfLLMConfig
from infllm_cpp.cli.serve import environment
from served import N_CTX, TEXT, Server

pytestmark = served.skipped


def test_a_text_beyond_the_training_length(start: Callable[..., Server]) -> None:
    server = start("--parallel", "2")
    assert server.get("/props")["default_generation_settings"]["n_ctx"] == N_CTX
    text = TEXT * 480  # more than 8,192 tokens
    first = server.complete(text + "The grass is")
    assert first["tokens_evaluated"] > 9000
    second = server.complete(text + "The sky is")
    assert second["timings"]["cache_n"] > 9000  # the text is read once
    assert second["timings"]["prompt_n"] < 600

    with pytest.raises(urllib.error.HTTPError) as failed:
        server.complete(text * 2)
    assert failed.value.code == 400
    assert "context size" in failed.value.read().decode()

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda n: server.complete(f"{n} " + TEXT * 40), range(4)))
    assert all(answer["tokens_predicted"] == 16 for answer in answers)


def test_slots_are_saved_and_restored(start: Callable[..., Server], tmp_path: Path) -> None:
    folder = tmp_path / "slots"
    folder.mkdir()
    prompt = TEXT * 60
    server = start("--session-dir", str(folder))
    expected = server.complete(prompt, id_slot=0)
    saved = server.post("/slots/0?action=save", filename="a.bin")
    assert saved["n_saved"] > 1000
    server.stop()

    other = start("--session-dir", str(folder))
    assert other.post("/slots/0?action=restore", filename="a.bin")["n_restored"] == saved["n_saved"]
    answer = other.complete(prompt, id_slot=0)
    assert answer["content"] == expected["content"]
    assert answer["timings"]["cache_n"] > 1000

    # of other parameters: refused, and the server goes on
    third = start("--session-dir", str(folder), "--n-init", "32")
    with pytest.raises(urllib.error.HTTPError) as failed:
        third.post("/slots/0?action=restore", filename="a.bin")
    assert failed.value.code == 400
    assert third.complete("The sky is")["tokens_predicted"] == 16


def test_prompts_come_back_from_the_cache_in_memory(start: Callable[..., Server]) -> None:
    server = start("--cache-ram", "1024", "--cache-idle-slots")
    prompts = [TEXT * 60, "Something else is told here, of no meaning at all. " * 100]
    first = [server.complete(prompt) for prompt in prompts]
    again = [server.complete(prompt) for prompt in prompts]
    for a, b in zip(first, again, strict=True):
        assert a["content"] == b["content"]
        assert b["timings"]["cache_n"] > 1000
    log = server.log.read_text()
    assert "failed to" not in log


def test_chat_and_schema(start: Callable[..., Server]) -> None:
    server = start()
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    answer = server.post(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": TEXT * 60 + "How many?"}],
        max_tokens=64,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    assert answer["usage"]["prompt_tokens"] > 1000
    content = answer["choices"][0]["message"]["content"]
    assert content.lstrip().startswith("{")


def test_metrics_tell_of_the_memory(start: Callable[..., Server]) -> None:
    server = start()
    assert server.metrics()["infllm:tokens"] == 0
    server.complete(TEXT * 60)
    metrics = server.metrics()
    assert metrics["infllm:tokens"] > metrics["infllm:tokens_resident"] > 0
    assert metrics["infllm:sequences"] == 1
    assert (
        metrics["infllm:selected_total"]
        == metrics["infllm:hits_total"] + metrics["infllm:page_ins_total"]
        > 0
    )
    assert metrics["infllm:store_memory_bytes"] > metrics["infllm:resident_bytes"] > 0
    assert metrics["infllm:store_file_bytes"] == 0
    assert metrics["llamacpp:prompt_tokens_total"] > 1000


def test_a_client_that_goes_stops_the_computation(start: Callable[..., Server]) -> None:
    server = start()
    with pytest.raises(TimeoutError):
        server.post("/completion", timeout=1, prompt=TEXT * 640, n_predict=1)
    server.complete("The sky is")  # waits for the slot
    assert 0 < server.metrics()["llamacpp:prompt_tokens_total"] < 10000


def test_many_clients(start: Callable[..., Server]) -> None:
    server = start("--parallel", "4")
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: server.complete(f"{n} " + TEXT * (n % 4 * 10)), range(16)))
    assert [answer["tokens_predicted"] for answer in answers] == [16] * 16
    alone = [server.complete(f"{n} " + TEXT * (n % 4 * 10)) for n in (3, 14)]
    assert [answer["tokens_predicted"] for answer in alone] == [16] * 2


def test_what_cannot_be_served_is_told_before_it_starts(infllm: Run, first_layers_path: Path) -> None:
    model = ["-m", str(first_layers_path)]
    for options, message in (
        (["--n-ctx", "32768", "--n-local", "1000000"], "n_local = 1000000"),
        (["--port", "0"], "port = 0 is out of range"),
        (["--parallel", "1000"], "parallel = 1000 is out of range"),
    ):
        result = infllm("serve", *model, *options)
        assert result.returncode == 1
        assert message in result.stderr
    assert "--api-key" in infllm("serve", "--", "--help").stdout


def test_the_environment_of_other_programs() -> None:
    assert environment(None) == "0"
    assert environment(InfLLMConfig()) == "1"
    config = InfLLMConfig(n_local=256, search="queries", store_path="/tmp", type_store="q8_0")
    assert environment(config) == "n_local=256,search=queries,store_path=/tmp,type_store=q8_0"
    assert environment(InfLLMConfig(budget="2 MiB", profile="fast")) == f"budget={2 << 20},profile=fast"
    with pytest.raises(ValueError, match="budget = '100 tokens' is no number of bytes: other programs"):
        environment(InfLLMConfig(budget="100 tokens"))
