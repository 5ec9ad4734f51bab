"""Llama: what is stored, what is generated, in which shape."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from conftest import SMALL
from infllm_cpp import Llama
from infllm_cpp.types import ChatMessage

PROMPT = "The capital of France is"


def text_of(llm: Llama, prompt: str | list[int] = PROMPT, max_tokens: int = 8) -> str:
    return llm(prompt, max_tokens=max_tokens, temperature=0)["choices"][0]["text"]


# -- tokens


@pytest.mark.parametrize("text", ["Hello, world!", "naïve 😀 日本語", "  spaces\n\n", ""])
def test_text_survives_tokens(llm: Llama, text: str) -> None:
    assert llm.detokenize(llm.tokenize(text, add_bos=False)).decode() == text
    assert llm.tokenize(text) == llm.tokenize(text.encode())


def test_special_tokens_are_read_only_when_asked_for(llm: Llama) -> None:
    assert len(llm.tokenize("<|im_end|>", add_bos=False, special=True)) == 1
    assert len(llm.tokenize("<|im_end|>", add_bos=False)) > 1


# -- logits


def test_logits_do_not_depend_on_how_tokens_are_batched(llm: Llama) -> None:
    tokens = llm.tokenize(PROMPT)
    rows = llm.eval(tokens, all_logits=True)
    assert rows.shape == (len(tokens), llm.n_vocab())
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows[-1], llm.logits)

    llm.reset()
    for token, row in zip(tokens, rows, strict=True):
        llm.eval([token])
        np.testing.assert_allclose(llm.logits, row, atol=0.05)


def test_all_logits_of_several_batches_are_in_order(llm: Llama, passkey: tuple[list[int], str]) -> None:
    tokens = passkey[0][:200]  # n_batch is 128
    rows = llm.eval(tokens, all_logits=True)
    assert rows.shape[0] == 200
    # a repetitive text is predicted well only by the rows that belong to it
    hits = np.mean(rows[100:-1].argmax(axis=1) == np.array(tokens[101:]))
    assert hits > 0.9


def test_logits_need_evaluated_tokens(llm: Llama) -> None:
    with pytest.raises(RuntimeError, match="no logits: evaluate tokens first"):
        _ = llm.logits
    llm.eval(llm.tokenize(PROMPT))
    llm.truncate(2)
    with pytest.raises(RuntimeError, match="no logits"):
        _ = llm.logits


# -- stored tokens


def test_truncate_takes_back_tokens(llm: Llama) -> None:
    tokens = llm.tokenize(PROMPT)
    llm.eval(tokens)
    expected = llm.logits
    llm.eval(llm.tokenize(" nowhere to be found", add_bos=False))
    assert llm.truncate(len(tokens) - 1) == len(tokens) - 1
    llm.eval(tokens[-1:])
    np.testing.assert_allclose(llm.logits, expected, atol=0.05)
    assert llm.tokens == tokens


def test_truncate_out_of_range(llm: Llama) -> None:
    llm.eval(llm.tokenize(PROMPT))
    with pytest.raises(ValueError, match=r"n_tokens = 100 is out of range: 5 tokens are stored"):
        llm.truncate(100)


def test_truncate_past_the_local_window(llm: Llama, passkey: tuple[list[int], str]) -> None:
    tokens, key = passkey
    expected = text_of(llm, tokens)
    assert llm.truncate(200) == 200
    completion = llm(tokens, max_tokens=8, temperature=0)
    assert completion["usage"]["prompt_tokens_details"]["cached_tokens"] == 128  # whole ubatches
    assert completion["choices"][0]["text"].strip().startswith(key)
    assert expected.strip().startswith(key)


def test_reset_forgets(llm: Llama) -> None:
    expected = text_of(llm)
    text_of(llm, "Something else entirely, and longer than before")
    llm.reset()
    assert llm.n_tokens == 0
    assert text_of(llm) == expected


def test_a_prompt_that_begins_as_the_stored_tokens_reuses_them(llm: Llama) -> None:
    tokens = llm.tokenize("The grass is green. " * 40 + PROMPT)
    first = llm(tokens, max_tokens=4, temperature=0)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0

    again = llm(tokens, max_tokens=4, temperature=0)
    # a question is read again as a whole
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == len(tokens) - 32
    assert again["choices"] == first["choices"]

    other = llm([*tokens[:-3], *llm.tokenize(" Spain is", add_bos=False)], max_tokens=4, temperature=0)
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] >= 128  # whole ubatches


def test_a_chat_evaluates_only_what_is_new(llm: Llama) -> None:
    messages: list[ChatMessage] = [
        {"role": "user", "content": "The grass is green. " * 40 + "Name a colour."}
    ]
    first = llm.create_chat_completion(messages, max_tokens=12, temperature=0)
    assert first["choices"][0]["message"]["role"] == "assistant"

    question = (
        "Another, and tell me in one sentence why you like it better than all the others that there are."
    )
    messages += [first["choices"][0]["message"], {"role": "user", "content": question}]  # type: ignore[list-item]
    second = llm.create_chat_completion(messages, max_tokens=12, temperature=0)
    usage = second["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"]
    assert usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] < 60


# -- generation


def test_a_completion_has_openais_shape(llm: Llama) -> None:
    completion = llm(PROMPT, max_tokens=4, temperature=0)
    assert completion["object"] == "text_completion"
    assert completion["id"].startswith("cmpl-")
    assert completion["choices"][0]["text"].startswith(" Paris")
    assert completion["choices"][0]["finish_reason"] == "length"
    assert completion["usage"]["prompt_tokens"] == 5
    assert completion["usage"]["completion_tokens"] == 4
    assert completion["usage"]["total_tokens"] == 9


def test_a_chat_completion_has_openais_shape(llm: Llama) -> None:
    completion = llm.create_chat_completion(
        [{"role": "user", "content": "What is 2+2?"}], max_tokens=64, temperature=0
    )
    assert completion["object"] == "chat.completion"
    assert completion["id"].startswith("chatcmpl-")
    assert "4" in completion["choices"][0]["message"]["content"]
    assert completion["choices"][0]["finish_reason"] == "stop"


def test_a_stream_gives_the_same_text(llm: Llama) -> None:
    chunks = list(llm(PROMPT, max_tokens=12, temperature=0, stream=True))
    assert len(chunks) > 3
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text_of(llm, max_tokens=12)
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["usage"]["completion_tokens"] == 12


def test_a_chat_stream_begins_with_the_role(llm: Llama) -> None:
    messages: list[ChatMessage] = [{"role": "user", "content": "Name a colour."}]
    chunks = list(llm.create_chat_completion(messages, max_tokens=8, temperature=0, stream=True))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"}
    assert chunks[-1]["choices"][0]["delta"] == {}
    content = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    expected = llm.create_chat_completion(messages, max_tokens=8, temperature=0)
    assert content == expected["choices"][0]["message"]["content"]


def test_emoji_are_streamed_whole(llm: Llama) -> None:
    # an emoji is several tokens for this model: it repeats what it sees
    prompt = "😀 🎉 🚀 " * 8
    assert len(llm.tokenize("😀", add_bos=False)) > 1
    pieces = [c["choices"][0]["text"] for c in llm(prompt, max_tokens=24, temperature=0, stream=True)]
    # the last one may be cut by max_tokens
    assert "�" not in "".join(pieces[:-1])
    assert any(emoji in piece for piece in pieces for emoji in "😀🎉🚀")


def test_a_character_cut_by_max_tokens_is_replaced(llm: Llama) -> None:
    prompt = "😀" * 16
    n_emoji = len(llm.tokenize("😀", add_bos=False))
    text = llm(prompt, max_tokens=n_emoji - 1, temperature=0)["choices"][0]["text"]
    assert text == "�"


@pytest.mark.parametrize("stop", ["\n", ["xyz", " Paris.\n"], ["is."]])
def test_a_stop_string_ends_the_text_and_is_not_in_it(llm: Llama, stop: str | list[str]) -> None:
    full = text_of(llm, max_tokens=8)
    completion = llm(PROMPT, max_tokens=8, temperature=0, stop=stop)
    stops = [stop] if isinstance(stop, str) else stop
    assert completion["choices"][0]["text"] == full[: min(full.index(s) for s in stops if s in full)]
    assert completion["choices"][0]["finish_reason"] == "stop"


def test_echo_begins_with_the_prompt(llm: Llama) -> None:
    assert llm(PROMPT, max_tokens=2, temperature=0, echo=True)["choices"][0]["text"].startswith(
        PROMPT + " Paris"
    )


def test_a_seed_makes_sampling_repeatable(llm: Llama) -> None:
    def sample(seed: int) -> str:
        return llm("Once upon a time", max_tokens=12, temperature=1.5, seed=seed)["choices"][0]["text"]

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(1, 5)}) > 1


def test_top_k_of_one_is_greedy(llm: Llama) -> None:
    text = llm(PROMPT, max_tokens=8, temperature=2.0, top_k=1)["choices"][0]["text"]
    assert text == text_of(llm)


def test_a_repeat_penalty_applies_to_the_prompt_too(llm: Llama) -> None:
    prompt = "The grass is green. The sky is blue. " * 3 + "The grass is"
    assert text_of(llm, prompt, 1) == " green"
    text = llm(prompt, max_tokens=1, temperature=0, repeat_penalty=5.0)["choices"][0]["text"]
    assert text != " green"


def test_a_full_context_ends_the_text(model_path: Path) -> None:
    with Llama(model_path, n_ctx=300, infllm=SMALL) as llm:
        tokens = (llm.tokenize("The grass is green. ") * 100)[:296]
        completion = llm(tokens, max_tokens=None, temperature=0, stop=[])
        assert completion["choices"][0]["finish_reason"] == "length"
        # the last token needs no room: it is not evaluated
        assert completion["usage"]["completion_tokens"] == 5
        assert llm.n_tokens == 300


def test_progress_reports_what_is_evaluated(llm: Llama, passkey: tuple[list[int], str]) -> None:
    seen: list[tuple[int, int]] = []
    tokens = passkey[0][:300]
    llm.eval(tokens[:100])
    llm(tokens, max_tokens=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(128, 300), (256, 300), (268, 300), (300, 300)]


def test_prefill_stores_exactly_the_prompt(llm: Llama) -> None:
    tokens = llm.tokenize(PROMPT)
    llm.eval(llm.tokenize("The capital of Spain is Madrid"))
    assert llm.prefill(tokens) == 0  # as short as a question, which is read as a whole
    assert llm.tokens == tokens


# -- the object


def test_closing_twice_and_use_after_close(model_path: Path) -> None:
    with Llama(model_path, n_ctx=256) as llm:
        pass
    llm.close()
    llm.interrupt()  # there is nothing to stop
    for use in (
        lambda: llm(PROMPT),
        lambda: llm.tokenize("a"),
        lambda: llm.eval([1]),
        lambda: llm.logits,
        llm.stats,
        llm.reset,
        llm.n_vocab,
    ):
        with pytest.raises(RuntimeError, match="this Llama is closed"):
            use()


def test_two_threads_get_the_answers_that_one_gets(llm: Llama) -> None:
    prompts = [PROMPT, "The largest planet is", "Water boils at"]
    expected = [text_of(llm, prompt) for prompt in prompts]
    results: dict[int, str] = {}

    def work(i: int) -> None:
        results[i] = text_of(llm, prompts[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(len(prompts))] == expected


def test_a_stream_that_was_overtaken_says_so(llm: Llama) -> None:
    stream = llm(PROMPT, max_tokens=12, stream=True)
    next(stream)
    text_of(llm, "Something else")
    with pytest.raises(RuntimeError, match="another call changed the stored tokens"):
        list(stream)
    assert text_of(llm).startswith(" Paris")


def test_an_abandoned_stream_does_no_harm(llm: Llama) -> None:
    stream = llm(PROMPT, max_tokens=100, stream=True)
    next(stream)
    del stream
    assert text_of(llm).startswith(" Paris")


def test_a_callback_must_not_call_back(llm: Llama) -> None:
    def progress(done: int, total: int) -> None:
        llm.reset()

    with pytest.raises(RuntimeError, match="a callback or a signal handler must not use the Llama"):
        llm.eval(llm.tokenize(PROMPT), progress=progress)
    assert text_of(llm).startswith(" Paris")


def test_an_exception_in_a_callback_leaves_what_is_stored(llm: Llama, passkey: tuple[list[int], str]) -> None:
    class Enough(Exception):
        pass

    def progress(done: int, total: int) -> None:
        if done >= 256:
            raise Enough

    tokens, key = passkey
    with pytest.raises(Enough):
        llm.eval(tokens, progress=progress)
    assert llm.tokens == tokens[:256]
    completion = llm(tokens, max_tokens=8, temperature=0)
    assert completion["usage"]["prompt_tokens_details"]["cached_tokens"] == 256
    assert completion["choices"][0]["text"].strip().startswith(key)


def test_metadata(llm: Llama) -> None:
    assert llm.metadata["general.architecture"] == "llama"
    assert llm.n_ctx() == 1024
    assert llm.n_ctx_train() == 8192


@pytest.mark.parametrize("kv_type", ["bf16", "q8_0", "q4_0"])
def test_quantised_k_and_v(model_path: Path, kv_type: str, passkey: tuple[list[int], str]) -> None:
    tokens, key = passkey
    with Llama(model_path, n_ctx=1024, infllm=SMALL, type_k=kv_type, type_v=kv_type) as llm:  # type: ignore[arg-type]
        stats = llm.stats()
        assert stats is not None
        if kv_type == "q8_0":
            assert text_of(llm, tokens).strip().startswith(key)
        else:
            assert text_of(llm).startswith(" Paris")


def test_the_log_is_printed_only_when_verbose(model_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Llama(model_path, n_ctx=256).close()
    assert capfd.readouterr().err == ""
    Llama(model_path, n_ctx=256, verbose=True).close()
    assert "n_ctx_train" in capfd.readouterr().err


def test_a_context_takes_over_the_state_of_another(model_path: Path) -> None:
    """What scripts/gpu_check.py uses to fill a cache on the CPU."""
    with (
        Llama(model_path, n_ctx=256, infllm=None, flash_attn=True) as a,
        Llama(model_path, n_ctx=256, infllm=None, flash_attn=True, offload_kqv=False) as b,
    ):
        a.eval(a.tokenize("The capital of France is"))
        b._ctx.copy_state_from(a._ctx)
        b._stored.append(a.tokens)
        for llm in (a, b):
            llm.truncate(llm.n_tokens - 1)
            llm.eval(a.tokenize(" is", add_bos=False))
        assert np.array_equal(a.logits, b.logits)
