"""`infllm eval --file`: LongBench, InfiniteBench and RULER in files that the tests write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import SMALL, Run
from infllm_cpp import Llama
from infllm_cpp.evaluation import report, scores
from infllm_cpp.evaluation.files import load_prompts, load_rows
from infllm_cpp.evaluation.runner import Plan, read_results, run
from infllm_cpp.evaluation.scores import Score


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def longbench(dataset: str, answers: Sequence[str], **changes: Any) -> dict[str, Any]:
    line = {"input": "Who?", "context": "It was\u2028Anna.", "answers": answers, "dataset": dataset}
    return {**line, "length": 3, "language": "en", "all_classes": None, "_id": "1", **changes}


def infinitebench(answer: Any, **changes: Any) -> dict[str, Any]:
    return {"id": 0, "context": "It was Anna.", "input": "Who?", "answer": answer, "options": [], **changes}


@pytest.mark.parametrize(
    ("score", "answer", "expected", "right"),
    [
        (scores.share_found, "ABC, def", ("abc", "DEF", "ghi", "jkl"), 0.5),
        (scores.any_found, "It is DEF.", ("abc", "def"), 1),
        (scores.any_found, "It is ghi.", ("abc", "def"), 0),
        # two of three words said, of two expected
        (scores.f1, "The Anna Smith, probably", ("Anna Smith",), 0.8),
        (scores.f1, "an apple", ("banana", "Apple."), 1),
        (scores.f1, "", ("apple",), 0),
        (scores.f1_zh, "我来到北京。", ("我来到北京",), 1),
        # the longest common sequence is 2 of 3 words, and 2 of 4
        (scores.rouge_l, "the cat sat", ("the dog sat down",), 4 / 7),
        (scores.rouge_l, "", ("the dog sat down",), 0),
        (scores.rouge_l_zh, "我来到北京", ("我来到北京",), 1),
        (scores.rouge_l_sum, "the cat sat", ("the dog sat down",), 4 / 7),
        (scores.of_class(["cat", "big cat", "dog"]), "big cat", ("big cat",), 1),
        (scores.of_class(["cat", "big cat", "dog"]), "cat or dog", ("cat",), 0.5),
        (scores.of_class(["cat", "big cat", "dog"]), "dog", ("cat",), 0),
        (scores.number, "Paragraph 3, or 13", ("Paragraph 3",), 0.5),
        (scores.number, "none", ("7",), 0),
        (scores.code_similarity, "\n# first\nreturn abcd\nx", ("return abcd",), 1),
        # 8 of 10 characters in the same order, of two texts of 5
        (scores.code_similarity, "abcde", ("abxde",), 0.8),
        (scores.of_first_line(scores.f1), "\nyes\nno", ("yes",), 1),
        (scores.first_number, "It is 123, not 4", ("123",), 1),
        (scores.first_number, "It is 1234", ("123",), 0),
        (scores.first_value, "about 2.50", ("2.5",), 1),
        (scores.last_integer, "The value is: -12.", ("-12",), 1),
        (scores.last_integer, "-12 it is", ("-12",), 0),
        (scores.a_word, '"ab-12": "cd-34"', ("cd-34",), 1),
        (scores.a_word, "cd-345", ("cd-34",), 0),
        (scores.a_name, "It is Anna.", ("ANNA", "ANNA SMITH"), 1),
        (scores.first_values, "1, 3, 9", ("1", "3", "4", "8"), 0.5),
        (scores.option, "B. Oslo", ("Oslo", "B"), 1),
        (scores.option, "A. Oslo", ("Oslo", "B"), 0),
        (scores.option, "Oslo", ("Oslo", "B"), 1),
        (scores.option, "the answer is: C", ("Oslo", "B"), 0),
        (scores.option, "it must be B", ("Oslo", "B"), 1),
        (scores.faulty_function, "B. run", ("run", "B"), 1),
        (scores.faulty_function, "The answer is: run", ("run", "B"), 1),
        (scores.faulty_function, "B it must be", ("run", "B"), 0),
        (scores.f1_of_characters, "北京。", ("北京市",), 0.8),
    ],
)
def test_a_score(score: Score, answer: str, expected: Sequence[str], right: float) -> None:
    assert score(answer, expected) == pytest.approx(right, abs=1e-4)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rouge", None)
    path = write(tmp_path / "report.jsonl", longbench("gov_report", ["A report."]))
    with pytest.raises(RuntimeError, match=r'need rouge: install it with pip install "infllm-cpp\[eval\]"'):
        load_rows(path, {})


def test_the_formats_are_told_by_their_keys(tmp_path: Path) -> None:
    rows = [
        *load_rows(write(tmp_path / "any.jsonl", longbench("hotpotqa_e", ["Anna", "Ann"])), {}),
        *load_rows(
            write(tmp_path / "trec.jsonl", longbench("trec", ["cat"], all_classes=["cat", "dog"])), {}
        ),
        *load_rows(write(tmp_path / "math_calc.jsonl", infinitebench([1, -2])), {}),
        *load_rows(
            write(tmp_path / "code_debug.jsonl", infinitebench(["g"], options=["f", "g", "h", "i"])), {}
        ),
        *load_rows(
            write(
                tmp_path / "niah_single_1/validation.jsonl",
                {"index": 0, "input": "Text. Which?", "outputs": ["1", "2"], "answer_prefix": " They are"},
            ),
            {},
        ),
        *load_rows(write(tmp_path / "qa_1.jsonl", {"index": 0, "input": "Who?", "outputs": ["x", "y"]}), {}),
    ]
    assert [(row.task, row.answers) for row in rows] == [
        ("longbench hotpotqa", ("Anna", "Ann")),
        ("longbench trec", ("cat",)),
        ("infinitebench math_calc", ("1", "-2")),
        ("infinitebench code_debug", ("g", "B")),
        ("ruler niah_single_1", ("1", "2")),
        ("ruler qa_1", ("x", "y")),
    ]
    assert [row.kind.n_answer for row in rows] == [32, 64, 30000, 5, 128, 32]
    assert [row.kind.score("y cat\ndog 1", row.answers) for row in rows] == [0, 1, 0.5, 0, 0.5, 1]
    assert "It was\u2028Anna." in rows[0].prompt and rows[0].prompt.endswith("Question: Who?\nAnswer:")
    assert "\nB. g\n" in rows[3].prompt
    assert rows[4].prompt == "Text. Which? They are"


def test_published_prompts(tmp_path: Path) -> None:
    prompts = tmp_path / "dataset2prompt.json"
    prompts.write_text('{"hotpotqa": "{context} - {input}"}')
    path = write(tmp_path / "a.jsonl", longbench("hotpotqa", ["Anna"]))
    (ours,), (published,) = load_rows(path, {}), load_rows(path, load_prompts(prompts))
    assert published.prompt == "It was\u2028Anna. - Who?"
    assert published.digest != ours.digest
    prompts.write_text('["hotpotqa"]')
    with pytest.raises(ValueError, match="has no object of prompts by data set"):
        load_prompts(prompts)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "{}\n{", "line 1, cannot be used: it needs a key answers"),
        ("a.jsonl", "{", r"line 1, cannot be used: it is not JSON"),
        ("a.jsonl", "[]", "line 1, cannot be used: "),
        ("a.jsonl", '{"answers": ["x"]}', "line 1, cannot be used: it has no 'dataset'"),
        ("a.jsonl", '{"answers": ["x"], "dataset": "x"}', "longbench has no data set 'x': use narrativeqa"),
        ("a.jsonl", '{"answers": [], "dataset": "lcc"}', "it expects no answer"),
        ("a.jsonl", '{"answers": ["x"], "dataset": "lcc", "input": ""}', "it has no 'context'"),
        ("a.jsonl", '{"answer": "x"}', "infinitebench has no data set 'a': use passkey"),
        ("a.jsonl", '{"outputs": ["x"]}', "use niah, vt, cwe, fwe, qa"),
        ("a.jsonl", "", "a.jsonl is empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path / name, {})


def test_a_prompt_is_cut_in_the_middle(shared_llm: Llama, tmp_path: Path) -> None:
    numbers = " ".join(map(str, range(1000)))
    path = write(tmp_path / "a.jsonl", longbench("hotpotqa", ["Anna"], context=numbers))
    (row,) = load_rows(path, {})
    whole, cut = row.sample(shared_llm, 10000), row.sample(shared_llm, 300)
    assert whole.n_cut == 0
    assert len(cut.tokens) == 300 - 32
    assert cut.n_cut == len(whole.tokens) - len(cut.tokens)
    assert cut.tokens == whole.tokens[:134] + whole.tokens[-134:]
    assert cut.questions[0].n_answer == 32
    assert row.sample(shared_llm, 100).questions[0].n_answer == 25


def test_files_are_run_and_go_on(model_path: Path, tmp_path: Path, infllm: Run) -> None:
    text = "The grass is green. The pass key is 71432. Remember it. The sky is blue. "
    lines = [infinitebench("71432", context=text, input="What is the pass key?", id=i) for i in range(3)]
    passkeys = write(tmp_path / "passkey.jsonl", *lines)
    niah = write(
        tmp_path / "niah_single_1/validation.jsonl",
        {"index": 0, "input": text + "What is the pass key?", "outputs": ["71432", "none"]}
        | {"answer_prefix": " The pass key is"},
    )
    output = tmp_path / "eval.jsonl"
    plan = Plan(model_path, [], ["full", "infllm"], [256], configs=[SMALL], files=[passkeys, niah], samples=2)
    results = run(plan, output)
    assert len(results) == 2 * (2 + 1)
    assert {r["task"] for r in results} == {"infinitebench passkey", "ruler niah_single_1"}
    assert [r["n_right"] for r in results if r["task"] == "ruler niah_single_1"] == [0.5, 0.5]
    assert [r["n_right"] for r in results if r["task"] == "infinitebench passkey"] == [1, 1, 1, 1]
    assert all(r["n_cut"] == 0 for r in results)

    # the first two lines are there, the third is another measurement, and so is a line that was changed
    args = ["eval", "--file", str(passkeys), "--file", str(niah), "-m", str(model_path), "--lengths", "256"]
    args += ["-o", str(output), "--methods", "full,infllm"]
    args += [f"--{name.replace('_', '-')}={v}" for name, v in vars(SMALL).items() if v is not None]
    again = infllm(*args)
    assert again.returncode == 0, again.stderr
    assert "100 % (3/3)" in again.stdout and "50 % (0.5/1)" in again.stdout
    assert "mean of the tasks" in again.stdout and again.stdout.count("75.0 %") == 2
    assert len(read_results(output)) == 2 * (3 + 1)
    write(passkeys, lines[0], {**lines[1], "answer": "no"})
    changed = run(plan, output)
    assert sum(r["n_right"] for r in changed if r["task"] == "infinitebench passkey") == 2
    assert len(read_results(output)) == 2 * (4 + 1)

    failed = infllm("eval", "--file", str(passkeys), "--seed", "2", "-m", str(model_path))
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: seed = 2 is no line of {passkeys}: it has 2, from 0")


def test_methods_side_by_side() -> None:
    results = [
        {"task": task, "method": method, "config": {}, "length": 512, "depth": 0.5, "seed": 0}
        | {"n_right": right, "n_asked": 2, "seconds": 1.0, "bytes_resident": 2**20, "bytes_store": 0}
        for method, rights in (("full", (2, 0.5)), ("infllm", (1, 0)))
        for task, right in zip(("a", "b"), rights, strict=True)
    ]
    table = report.side_by_side(results)
    cells = [list(column.cells) for column in table.columns]
    assert [column.header for column in table.columns] == ["512 tokens", "full", "infllm"]
    assert cells == [
        ["a", "b", "mean of the tasks", "resident"],
        ["100 % (2/2)", "25 % (0.5/2)", "62.5 %", "1.0 MiB"],
        ["50 % (1/2)", "0 % (0/2)", "25.0 %", "1.0 MiB"],
    ]
    assert len(report.tables(results)) == 3
    assert len(report.tables(results[:2])) == 2
