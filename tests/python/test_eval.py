"""`infllm eval`: texts, results that survive an interruption, tables, pictures, recommendations."""

from __future__ import annotations

import dataclasses
import json
import math
import pydoc_data.topics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import SMALL, Run
from infllm_cpp import InfLLMConfig, Llama
from infllm_cpp.cli.eval import parse_list, parse_numbers, parse_sweep
from infllm_cpp.evaluation import report, runner
from infllm_cpp.evaluation.haystack import N_ANSWER, Haystack
from infllm_cpp.evaluation.logits import perplexity
from infllm_cpp.evaluation.methods import load_method
from infllm_cpp.evaluation.prose import load_prose, sentences
from infllm_cpp.evaluation.runner import Plan, read_results, run
from infllm_cpp.evaluation.tasks import RETRIEVAL, WHOLE, fill


@pytest.fixture(scope="session")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real English without a download: Python's language reference."""
    path = tmp_path_factory.mktemp("prose") / "prose.txt"
    topics = pydoc_data.topics.topics
    path.write_text("\n".join(topics[name] for name in sorted(topics)))
    return path


@pytest.fixture(scope="session")
def haystack(shared_llm: Llama, prose: Path) -> Haystack:
    return Haystack(shared_llm, prose.read_text())


def test_the_prose_is_long_english() -> None:
    text = load_prose()
    assert text.startswith("In the beginning God created the heaven and the earth. And the earth")
    assert len(text) > 4_000_000
    assert "[" not in text and "\\n" not in text


def test_sentences_are_the_text(prose: Path) -> None:
    text = prose.read_text()[:20000]
    parts = sentences(text)
    assert "".join(parts) == text.rstrip()
    assert len(parts) > 50


LONGER = {"chat-recall": 2000, **dict.fromkeys(("asked-end", "asked-both", "asked-chat"), 800)}
"""What tasks need at least, where it is more than 400 tokens."""


@pytest.mark.parametrize("task", RETRIEVAL)
@pytest.mark.parametrize("longer", [0, 600])
def test_a_sample(haystack: Haystack, shared_llm: Llama, task: str, longer: int) -> None:
    n_tokens = LONGER.get(task, 400) + longer
    samples = {depth: RETRIEVAL[task](haystack, n_tokens, depth, 7) for depth in (0.1, 0.9)}
    for depth, sample in samples.items():
        assert RETRIEVAL[task](haystack, n_tokens, depth, 7) == sample, "the same seed, another text"
        assert RETRIEVAL[task](haystack, n_tokens, depth, 8) != sample
        longest = max(len(question.tokens) for question in sample.questions)
        assert 0.85 * n_tokens < len(sample.tokens) + longest <= n_tokens
        text = shared_llm.detokenize(sample.tokens).decode()
        for question in sample.questions:
            assert all(answer in text for answer in question.answers)
            assert question.score(" ".join(question.answers), question.answers) == 1
            assert question.score("nothing", question.answers) == 0
            if task not in WHOLE:
                place = text.index(question.answers[0]) / len(text)
                assert place < 0.4 if depth < 0.5 else place > 0.6
    assert len(samples[0.1].questions) == {"multi-needle": 4, "multi-passkey": 10}.get(task, 1)


@pytest.mark.parametrize("task", RETRIEVAL)
def test_text_question_and_answer_fill_a_context(haystack: Haystack, task: str) -> None:
    n_ctx = LONGER.get(task, 600)
    sample = fill(task, haystack, n_ctx, 0.5, 0)
    n_tokens = [
        len(sample.tokens) + len(question.tokens) + (question.n_answer or N_ANSWER)
        for question in sample.questions
    ]
    assert 0.85 * n_ctx <= max(n_tokens) <= n_ctx


def test_contexts_are_as_long_as_the_lengths(
    monkeypatch: pytest.MonkeyPatch, model_path: Path, prose: Path, tmp_path: Path
) -> None:
    # no longer: positions are true up to the training length alone
    made = []

    def make(method: str, path: Path, n_ctx: int, *args: Any, **options: Any) -> Llama:
        made.append(n_ctx)
        return load_method(method, path, n_ctx, *args, **options)

    monkeypatch.setattr(runner, "load_method", make)
    plan = Plan(model_path, ["needle", "perplexity"], ["infllm"], [300, 512], depths=1, text=prose)
    assert len(run(plan, tmp_path / "results.jsonl")) == 4
    assert made == [300, 512]


def test_keys_at_all_depths_are_asked_about_one_text(haystack: Haystack, model_path: Path) -> None:
    plan = Plan(model_path, ["kv-retrieval"], ["infllm"], [600], depths=3, samples=2)
    samples = [
        fill("kv-retrieval", haystack, 600, depth, seed) for depth, seed in plan.samples_of("kv-retrieval")
    ]
    first, second = samples[:3], samples[3:]
    for of_one in (first, second):
        assert all(sample.tokens == of_one[0].tokens for sample in of_one)
        assert len({sample.questions[0].answers for sample in of_one}) == 3
    assert first[0].tokens != second[0].tokens


@pytest.mark.parametrize("depth", [0.0, 1.0])
def test_the_asked_key_is_in_the_text(haystack: Haystack, depth: float) -> None:
    sample = fill("kv-retrieval", haystack, 600, depth, seed=0)
    answer = haystack.encode(sample.questions[0].answers[0])
    assert any(sample.tokens[i : i + len(answer)] == answer for i in range(len(sample.tokens)))


def test_too_short_for_the_facts(haystack: Haystack) -> None:
    with pytest.raises(ValueError, match="is too small for the 4 facts to hide"):
        RETRIEVAL["multi-needle"](haystack, 40, 0.5, 0)


@pytest.fixture(scope="session")
def results(model_path: Path, prose: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """Passkey and needle with all methods: twice as many tokens as SMALL keeps resident."""
    output = tmp_path_factory.mktemp("eval") / "eval.jsonl"
    plan = Plan(
        model=model_path,
        tasks=["passkey", "needle"],
        methods=["full", "infllm", "streaming"],
        lengths=[1000],
        depths=2,
        configs=[SMALL],
        text=prose,
        options={"n_batch": 128},
    )
    run(plan, output)
    return plan, output


def test_what_the_methods_find(results: tuple[Plan, Path]) -> None:
    _, output = results
    found = read_results(output)
    assert len(found) == 2 * 3 * 2

    def accuracy(task: str, method: str, depth: float) -> float:
        return report.accuracy(
            [r for r in found if (r["task"], r["method"], r["depth"]) == (task, method, depth)]
        )

    for depth in (0.25, 0.75):
        assert accuracy("passkey", "full", depth) == 1
        assert accuracy("passkey", "infllm", depth) == 1
    # what has left the local window is gone without a memory
    assert accuracy("passkey", "streaming", 0.25) == 0
    by_method = {r["method"]: r for r in found}
    assert by_method["streaming"]["bytes_resident"] == by_method["infllm"]["bytes_resident"]
    assert by_method["full"]["bytes_store"] == 0 < by_method["infllm"]["bytes_store"]


def test_what_is_there_is_not_run_again(
    results: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, output = results
    lines = output.read_text().splitlines(keepends=True)
    copy = tmp_path / "copy.jsonl"
    copy.write_text("".join(lines[:-1]) + lines[-1][:20])  # the last line was cut off

    seen = []
    again = run(plan, copy, lambda label, n_done, n_total: seen.append((label, n_total)))
    assert {label for label, _ in seen} == {"needle, streaming, 1,000 tokens"}
    assert {n_total for _, n_total in seen} == {1000}
    assert [r["answers"] for r in again] == [r["answers"] for r in map(json.loads, lines)]

    monkeypatch.setattr("infllm_cpp.evaluation.runner.load_method", None)
    assert run(plan, copy) == again  # nothing is left to do


def test_another_measurement_is_not_taken_for_it(
    results: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, output = results
    other_text, other_model = tmp_path / "other.txt", tmp_path / plan.model.name
    other_text.write_text("This is another text.")
    other_model.write_bytes(plan.model.read_bytes()[:-1])

    class NotThere(Exception):
        pass

    def load(*args: object, **kwargs: object) -> None:
        raise NotThere

    monkeypatch.setattr("infllm_cpp.evaluation.runner.load_method", load)
    run(dataclasses.replace(plan, options={**plan.options, "n_threads": 1}), output)
    run(dataclasses.replace(plan, tasks=["passkey"], text=other_text), output)  # there is no prose in it
    for changes in (
        {"text": other_text},
        {"model": other_model},
        *({"options": {**plan.options, **option}} for option in ({"n_ubatch": 64}, {"type_k": "q8_0"})),
    ):
        with pytest.raises(NotThere):
            run(dataclasses.replace(plan, **changes), output)


def test_streaming_keeps_the_first_and_the_last_tokens(
    model_path: Path, passkey: tuple[list[int], str]
) -> None:
    with load_method("streaming", model_path, 1024, SMALL, n_batch=128) as llm:
        assert llm.infllm is not None
        assert llm.infllm.n_local == SMALL.n_local + 7 * 32
        llm.eval(passkey[0])
        events = []
        llm.set_trace(events.append)
        llm.eval([100])
        assert {tuple(event.selected) for event in events} == {(0,)}
    with pytest.raises(ValueError, match="method 'best' is unknown"):
        load_method("best", model_path, 1024, SMALL)


def test_perplexity_is_that_of_the_logits(llm: Llama, haystack: Haystack) -> None:
    tokens = haystack.begin + [t for s in haystack.cut(300) for t in s]
    ((begin, end, loss),), last = perplexity(llm, tokens, lambda n_done, n_total: None)
    assert last == loss
    assert (begin, end) == (0, len(tokens))

    llm.reset()
    # in the same batches: others round otherwise
    logits = np.concatenate([llm.eval(part, all_logits=True) for part in (tokens[:256], tokens[256:])])
    logits = logits.astype(np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    expected = -np.log(p[np.arange(len(tokens) - 1), tokens[1:]]).mean()
    assert loss == pytest.approx(expected, rel=1e-4)
    assert 1 < math.exp(loss) < 100


def test_the_divergence_is_that_of_the_logits(
    first_layers_path: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infllm_cpp.evaluation.logits.BUCKET", 100)
    plan = Plan(
        model=first_layers_path,
        tasks=["divergence"],
        methods=["full", "full-q8_0", "full-q4_0", "infllm"],
        lengths=[1000],
        configs=[SMALL],
        text=prose,
        options={"n_batch": 128},
    )
    full, q8_0, q4_0, ours = run(plan, tmp_path / "eval.jsonl")
    assert (full["kl_mean"], full["kl_99"], full["same_token"]) == (0, 0, 1)
    assert 0 < q8_0["kl_mean"] < q4_0["kl_mean"] < 1
    assert 0 < ours["kl_median"] < ours["kl_mean"] < ours["kl_99"]

    with load_method("full", first_layers_path, 1000, SMALL, n_batch=128) as exact:
        tokens = Haystack(exact, prose.read_text()).begin
        tokens += [t for s in Haystack(exact, prose.read_text()).cut(999) for t in s]
        with load_method("full-q4_0", first_layers_path, 1000, SMALL, n_batch=128) as other:
            p, q = (
                np.concatenate(
                    [llm.eval(tokens[i : i + 256], all_logits=True) for i in (0, 256, 512, 768)]
                ).astype(np.float64)[-100:]
                for llm in (exact, other)
            )
    log_p, log_q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    assert q4_0["kl_mean"] == pytest.approx(kl.mean(), rel=1e-3)
    assert q4_0["kl_99"] == pytest.approx(np.percentile(kl, 99), rel=1e-3)
    assert q4_0["same_token"] == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    headers = [column.header for column in report.tables([full, q4_0])[0].columns]
    assert headers[1:] == ["method", "length", "mean", "median", "99 %", "same first token"]


def test_texts_of_every_length_end_with_the_same_passage(
    model_path: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infllm_cpp.evaluation.logits.BUCKET", 128)
    plan = Plan(
        model=model_path,
        tasks=["perplexity"],
        methods=["full"],
        lengths=[200, 500],
        text=prose,
        options={"n_batch": 128},
    )
    short, long = run(plan, tmp_path / "eval.jsonl")
    assert (short["length"], short["end"], long["length"], long["end"]) == (200, 500, 500, 500)

    with Llama(model_path, n_ctx=512, n_batch=128, infllm=None) as llm:
        haystack = Haystack(llm, prose.read_text())
        text = [token for sentence in haystack.cut(499) for token in sentence]
        tokens = haystack.begin + text[-199:]
        buckets, last = perplexity(llm, tokens, lambda n_done, n_total: None)
        assert [begin for begin, _, _ in buckets] == [0, 128]
        assert short["last"] == pytest.approx(last, rel=1e-4)
    # the same tokens are easier to predict with more text before them
    assert long["last"] < short["last"]
    headers = [[column.header for column in table.columns] for table in report.tables([short, long])]
    assert [f"perplexity of the last {report.BUCKET:,}", "method", "200", "500"] in headers


def test_the_front_and_the_recommendation() -> None:
    rows = [
        {"name": name, "accuracy": accuracy, "bytes_resident": size, "decode_tok_s": speed}
        for name, accuracy, size, speed in (
            ("small", 0.5, 1, 9),
            ("medium", 0.99, 2, 8),
            ("wasteful", 0.98, 3, 7),
            ("large", 1.0, 4, 6),
        )
    ]
    assert [row["name"] for row in report.pareto_front(rows)] == ["small", "medium", "large"]
    assert report.recommend(rows)["name"] == "medium"


def test_a_sweep_is_every_combination() -> None:
    configs = parse_sweep(SMALL, ["topk=4,8", "repr_topk=1,2"])
    assert [(c.topk, c.repr_topk) for c in configs] == [(4, 1), (4, 2), (8, 1), (8, 2)]
    assert configs[0] == dataclasses.replace(SMALL, topk=4, repr_topk=1)
    assert parse_sweep(SMALL, []) == [SMALL]
    budgets = parse_sweep(InfLLMConfig(), ["budget=2048 tokens,1 MiB"])
    assert [c.budget for c in budgets] == ["2048 tokens", "1 MiB"]


def test_a_method_is_not_swept_by_what_it_does_not_use() -> None:
    configs = parse_sweep(SMALL, ["search=keys,quest", "topk=4,8"])
    plan = Plan(
        Path("model"), ["passkey"], ["full", "full-q8_0", "infllm", "streaming"], [1000], configs=configs
    )
    contexts = list(plan.contexts())
    of = [[config for method, config, _ in contexts if method == name] for name in plan.methods]
    assert of[:3] == [[InfLLMConfig()], [InfLLMConfig()], configs]
    assert [config.topk for config in of[3]] == [4, 8]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_list("methods", "full,best", ("full", "infllm")), "methods = 'best' is unknown"),
        (lambda: parse_numbers("lengths", "4096,8k"), "lengths = '4096,8k' is not a list"),
        (lambda: parse_numbers("lengths", "0"), "lengths = '0'"),
        (lambda: parse_sweep(SMALL, ["window=4"]), "sweep = 'window=4' begins with no parameter"),
        (lambda: parse_sweep(SMALL, ["topk"]), "sweep topk = ''"),
    ],
)
def test_bad_values_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_the_command(
    infllm: Run, results: tuple[Plan, Path], model_path: Path, prose: Path, tmp_path: Path
) -> None:
    # the results are there already: only tables and pictures are made
    args = ["eval", "passkey", "needle", "-m", str(model_path), "--lengths", "1000", "--depths", "2"]
    args += ["--n-batch", "128"]
    args += [f"--{name.replace('_', '-')}={v}" for name, v in vars(SMALL).items() if v is not None]
    result = infllm(*args, "--text", str(prose), "-o", str(results[1]), "--plot", str(tmp_path / "pictures"))
    assert result.returncode == 0, result.stderr
    assert "100 % (2/2)" in result.stdout
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert len(pictures) == 6
    assert all((tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)

    failed = infllm("eval", "haystack")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: task = 'haystack' is unknown")

    failed = infllm("eval", "--n-ctx", "4096")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: n_ctx = 4096 has no use here")
