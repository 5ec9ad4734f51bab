"""The command line, in processes of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_models
from conftest import Run, interrupt
from infllm_cpp.cli import commands
from infllm_cpp.cli.options import with_options

SMALL_MEMORY = [
    *("--n-batch", "128", "--n-init", "32", "--n-local", "256", "--block-size", "32"),
    *("--topk", "8", "--max-cached-blocks", "8", "--repr-topk", "4", "--n-score", "16"),
]
SMALL_OPTIONS = ["--n-ctx", "1024", *SMALL_MEMORY]
GREEDY = ["--temperature", "0"]


def start(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "infllm_cpp", *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# -- run


def test_run_prints_the_answer_alone_on_stdout(infllm: Run) -> None:
    result = infllm("run", "--raw", "-p", "The capital of France is", "-n", "4", *GREEDY, *SMALL_OPTIONS)
    assert result.returncode == 0
    assert result.stdout.startswith(" Paris")
    assert "\x1b" not in result.stdout + result.stderr
    assert re.search(
        r"prefill 5 tokens, .* tok/s; decode 4 tokens, .* tok/s; resident .*, store ", result.stderr
    )


def test_run_quiet_prints_nothing_else(infllm: Run) -> None:
    result = infllm(
        "run", "-q", "--raw", "-p", "The capital of France is", "-n", "4", *GREEDY, *SMALL_OPTIONS
    )
    assert result.stdout.startswith(" Paris")
    assert result.stderr == ""


def test_run_reads_a_text_from_stdin(infllm: Run) -> None:
    text = "The pass key is 71432. Remember it. " + "The grass is green. The sky is blue. " * 90
    question = "What is the pass key? The pass key is"
    result = infllm("run", "--raw", "-f", "-", "-p", question, "-n", "6", *GREEDY, *SMALL_OPTIONS, stdin=text)
    assert "71432" in result.stdout


def test_run_reads_a_book(infllm: Run, tmp_path: Path) -> None:
    """Far longer than the training length, and no option for it."""
    model, book = tmp_path / "llama.gguf", tmp_path / "book.txt"
    tiny_models.write("llama", model)
    book.write_text("It was a quiet evening in the village. " * 3500)
    result = infllm("run", "-m", str(model), "-t", "1", "--raw", "-f", str(book), "-p", "Who?", "-n", "2")
    assert result.returncode == 0, result.stderr
    assert re.search(r"prefill 1\d\d,\d{3} tokens", result.stderr)


def test_run_uses_the_chat_template(infllm: Run) -> None:
    result = infllm("run", "-p", "What is 2+2?", "-n", "40", *GREEDY, "--no-infllm", "--n-ctx", "256")
    assert "4" in result.stdout
    # plain llama.cpp has no store to speak of
    assert "store" not in result.stderr


def test_run_ends_quietly_when_its_reader_goes(model_path: Path) -> None:
    command = f'"{sys.executable}" -m infllm_cpp run --raw -q -p "One, two," -n 200 --n-ctx 512 | head -c 5'
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert len(result.stdout) == 5
    assert result.stderr == ""


def test_ctrl_c_ends_run(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("The grass is green. The sky is blue. " * 800)
    process = start("run", "-f", str(path), "-p", "Summarize.", "--n-ctx", "16384")
    assert process.stderr is not None
    assert "reading" in process.stderr.readline()
    interrupt(process)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in err


# -- chat


def test_chat_answers_piped_lines_with_history(infllm: Run) -> None:
    script = "My name is Zorblax.\nWhat is my name? Answer with the name only.\n"
    result = infllm("chat", "-n", "40", *GREEDY, *SMALL_OPTIONS, stdin=script)
    assert result.returncode == 0
    assert "Zorblax" in result.stdout.splitlines()[-1]
    assert "> " not in result.stdout


def test_chat_commands(infllm: Run, tmp_path: Path) -> None:
    path = tmp_path / "facts.txt"
    path.write_text("The grass is green. " * 40 + "The pass key of the vault is 71432.\n")
    script = (
        f"/help\n/file {path}\nWhat is the pass key of the vault?\n/stats\n/reset\n/stats\n"
        f"/file {tmp_path / 'none.txt'}\n/dance\n/quit\nnot reached\n"
    )
    result = infllm("chat", "-n", "40", *GREEDY, *SMALL_OPTIONS, stdin=script)
    assert result.returncode == 0
    assert "71432" in result.stdout
    assert "/file PATH" in result.stderr
    assert re.search(r"facts.txt: \d+ tokens are stored", result.stderr)
    # all but the end of the file was not read again for the question
    assert re.search(r"prefill \d+ tokens \(\d+ more were stored\)", result.stderr)
    assert "tokens 0 of n_ctx = 1,024" in result.stderr
    assert "none.txt does not exist: check its path" in result.stderr
    assert "error: /dance is not a command: see /help" in result.stderr


def test_chat_says_when_the_context_is_too_small(infllm: Run, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("The grass is green. " * 500)
    script = f"/file {path}\nWhat is 2+2?\n"
    result = infllm("chat", "-n", "40", *GREEDY, *SMALL_OPTIONS, stdin=script)
    assert result.returncode == 0
    assert re.search(r"error: the prompt has \d+ tokens, more than n_ctx = 1024: use", result.stderr)
    assert "4" in result.stdout


def test_ctrl_c_interrupts_the_answer_and_not_the_chat() -> None:
    process = start("chat", "--n-ctx", "4096", "-n", "4000", *GREEDY)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("Write a very long story about a dragon.\n")
    process.stdin.flush()
    first = process.stdout.read(1)
    interrupt(process)
    out, err = process.communicate("What is 2+2?\n/stats\n/quit\n", timeout=120)
    assert process.returncode == 0
    assert first + out.splitlines()[0]
    assert "interrupted" in err
    assert re.search("4|four", out.splitlines()[-1])
    assert "last answer: " in err


# -- info, fetch, demo


def test_info_tells_what_a_context_needs(infllm: Run) -> None:
    result = infllm("info", "--n-ctx", "65536")
    assert result.returncode == 0
    rows = dict(re.findall(r"^(\S.*?)  +(.*)$", result.stdout, re.MULTILINE))
    assert rows["architecture"] == "llama"
    assert rows["training length"] == "8,192 tokens"
    # 30 layers, 3 KV heads of 64, K and V, 2 bytes
    assert rows["K and V"].startswith(f"{30 * 3 * 64 * 2 * 2:,} bytes per token")
    assert rows["plain llama.cpp"].startswith("1.41 GiB")
    assert re.match(
        r"[\d.]+ MiB resident \([\d,]+ cells\), [\d.]+ MiB of representative keys, 1.37 GiB in the store",
        rows["InfLLM memory"],
    )
    assert re.match(r"up to [\d,]+ tokens as llama.cpp, bit for bit: by the profile attention", rows["exact"])
    assert rows["speed"].endswith("51% of the speed with an empty context")


@pytest.mark.parametrize(
    "options", [SMALL_OPTIONS, ["--n-ctx", "8192", "--budget", "30 MiB"], ["--n-ctx", "8192"]]
)
def test_info_agrees_with_what_a_context_takes(infllm: Run, options: list[str]) -> None:
    info = infllm("info", *options).stdout
    run = infllm("run", "--raw", "-p", "a", "-n", "1", *options).stderr
    resident = re.search(r"InfLLM memory +(\S+ \S+) resident", info)
    assert resident is not None
    assert f"resident {resident[1]}" in run


def test_fetch_prints_the_path(infllm: Run, model_path: Path) -> None:
    result = infllm("fetch")
    assert result.stdout.strip() == str(model_path)


def test_demo_finds_the_pass_key(infllm: Run) -> None:
    result = infllm("demo", "--n-tokens", "1000", "--seed", "3", *SMALL_MEMORY)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("(right)") == 2
    assert "K and V resident" in result.stdout


def test_demo_shows_plain_llama_cpp_within_and_beyond_the_training_length(
    infllm: Run, tmp_path: Path
) -> None:
    model = tmp_path / "llama.gguf"
    tiny_models.write("llama", model)
    result = infllm("demo", "-m", str(model), "-t", "1", "--n-tokens", "3000")
    assert result.returncode == 0, result.stderr
    assert re.search(r"text, tokens\W+2,9\d\d\W+(512|4\d\d)\W+[12],\d\d\d\D", result.stdout)
    # random weights find nothing
    assert "Plain llama.cpp fails beyond the training length" in result.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no bash")
def test_a_build_shows_how_far_it_is_and_why_it_failed() -> None:
    def run(command: str) -> subprocess.CompletedProcess[str]:
        common = Path(__file__).parents[2] / "scripts" / "common.sh"
        script = f"set -euo pipefail; source '{common}'; with_progress bash -c '{command}'"
        return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)

    steps = 'for i in $(seq 1 200); do echo "  [$i/200] Building CXX object a.o"; done'
    result = run(f"{steps}; echo Successfully installed infllm-cpp")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 11
    assert (lines[0], lines[-2]) == ("  20 of 200 steps", "  200 of 200 steps")
    result = run(f"{steps}; echo error: no such header >&2; exit 3")
    assert result.returncode == 3
    assert "error: no such header" in result.stdout


# -- errors


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["run", "-m", "none.gguf", "-p", "Hi"], 1, "model file none.gguf does not exist"),
        (["info", "-m", "none.gguf"], 1, "model file none.gguf does not exist"),
        (["run", "-m", "someone/model:none.gguf", "-p", "Hi"], 1, "infllm-cpp[hub]"),
        (["run", "-p", "Hi", "--topk", "9", "--max-cached-blocks", "4"], 1, "max_cached_blocks = 4"),
        (["run", "-p", "Hi", "--position", "far"], 1, "position = 'far'"),
        (["run", "-p", "Hi", "--type-k", "q5"], 1, "type_k = 'q5'"),
        (["run", "-f", "none.txt"], 1, "the file none.txt does not exist"),
        (["run", "-f", "/"], 1, "/ is a directory"),
        (["run", "-f", sys.executable], 1, "is not a text file"),
        (["run"], 2, "give a prompt"),
        (["run", "--no-such-option"], 2, "--no-such-option"),
        (["run", "--n-ctx", "many"], 2, "--n-ctx"),
        (["dance"], 2, "dance"),
    ],
)
def test_an_error_is_one_line(infllm: Run, args: list[str], code: int, words: str) -> None:
    result = infllm(*args)
    assert result.returncode == code
    assert result.stdout == ""
    assert words in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


def test_the_command_alone_prints_its_help(infllm: Run) -> None:
    for args, word in (([], "chat"), (["trace"], "record")):
        result = infllm(*args)
        assert result.returncode == 0
        assert result.stdout == infllm(*args, "--help").stdout
        assert word in result.stdout


def test_a_tilde_in_paths_is_the_home_directory(infllm: Run, model_path: Path, tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path)}
    (tmp_path / "model.gguf").symlink_to(model_path)
    (tmp_path / "text.txt").write_text("One, two, three,")
    run = ["run", "-m", "~/model.gguf", "--file=~/text.txt", "--raw", "-q", "-n", "1", *SMALL_OPTIONS]
    result = infllm(*run, env=env)
    assert result.returncode == 0, result.stderr
    result = infllm("trace", "report", "~/none.trace", env=env)
    assert result.returncode == 1 and f"{tmp_path}/none.trace" in result.stderr


def test_every_command_reads_paths_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def command(text: Path | None = None, output: Path = Path("~/out")) -> None:
        seen.extend([text, output])

    monkeypatch.setenv("HOME", "/somewhere")
    with_options(command)(text=Path("~/text"), output=Path("out"))
    assert seen == [Path("/somewhere/text"), Path("out")]
    for group in (commands.app, commands.trace):
        for info in group.registered_commands:
            assert info.callback is not None
            assert info.callback.__name__ == "fetch" or hasattr(info.callback, "__wrapped__")


def test_help_has_examples(infllm: Run) -> None:
    names = [command.name or command.callback.__name__ for command in commands.app.registered_commands]
    for command in ([], *([name] for name in names), ["trace"], ["trace", "record"], ["trace", "report"]):
        result = infllm(*command, "--help", env={"COLUMNS": "110"})
        assert result.returncode == 0
        examples = result.stdout.partition("Examples:")[2].partition("╭")[0].split("\n")
        examples = [line for line in examples if line.strip()]
        assert any(" ".join(["infllm", *command]) in line for line in examples)
        assert all(line.startswith("     ") for line in examples), command
    options = infllm("run", "--help").stdout
    for word in (
        "--n-init",
        "--n-local",
        "--block-size",
        "--topk",
        "--max-cached-blocks",
        "--position",
        "--no-infllm",
    ):
        assert word in options


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell: str) -> None:
    """As typer's scripts for shells ask for it; with the name of the command that is installed."""
    script = "import sys; sys.argv[0] = 'infllm'; from infllm_cpp.cli import main; main()"
    for typed, expected in (("infllm ch", "chat"), ("infllm run --max-c", "--max-cached-blocks")):
        env = {
            **os.environ,
            "_INFLLM_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": typed,  # bash
            "COMP_CWORD": str(typed.count(" ")),
            "_TYPER_COMPLETE_ARGS": typed,  # zsh and fish
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
        result = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert expected in result.stdout, result.stderr


def test_bench(infllm: Run, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    output, picture = tmp_path / "bench.jsonl", tmp_path / "speed.png"
    args = ["--lengths", "300,1000", "--n-decode", "2", "--repeats", "2", "--text", str(text)]
    result = infllm("bench", *args, *SMALL_MEMORY, "-o", str(output), "--plot", str(picture))
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["memory"], row["n_tokens"]) for row in rows] == [
        ("plain llama.cpp", 300),
        ("InfLLM memory", 300),
        ("plain llama.cpp", 1000),
        ("InfLLM memory", 1000),
    ]
    assert all(row["prefill_tok_s"] > 0 and row["decode_tok_s"] > 0 for row in rows)
    assert rows[3]["page_ins_per_token"] > 0 and rows[3]["bytes_store"] > 0
    assert rows[1]["bytes_resident"] == rows[3]["bytes_resident"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "InfLLM memory" in result.stdout
    # decoding at the longer context is compared with the shorter in turns
    assert "decode_shortest_tok_s" not in rows[1]
    ratio = rows[3]["decode_tok_s"] / rows[3]["decode_shortest_tok_s"]
    assert f"InfLLM memory: at 1,000 tokens {ratio:.2f} x as fast as at 300" in result.stdout


def test_bench_of_the_method_alone(infllm: Run, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    args = ["--lengths", "200,700", "--n-decode", "1", "--repeats", "1", "--plain-up-to", "0"]
    result = infllm("bench", *args, "--text", str(text), *SMALL_MEMORY)
    assert result.returncode == 0, result.stderr
    assert "InfLLM memory" in result.stdout and "plain llama.cpp" not in result.stdout

    for option, error in (
        ("--no-infllm", "leaves nothing to measure"),
        ("--no-kv-offload", "excludes --no-kv-offload"),
    ):
        result = infllm("bench", *args, option)
        assert result.returncode == 1
        assert result.stderr.startswith(f"error: plain_up_to = 0 {error}")


def test_bench_fits_a_line_to_plain(infllm: Run, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    args = ["--n-decode", "1", "--repeats", "1", "--text", str(text), "--plain-up-to", "400"]
    result = infllm("bench", "--lengths", "200,400,700", *args, *SMALL_MEMORY)
    assert result.returncode == 0, result.stderr
    assert "plain llama.cpp *" in result.stdout
    assert re.search(r"\* plain llama\.cpp: \S+ ms \+ \S+ µs per token of context", result.stdout)

    result = infllm("bench", "--lengths", "200,700", *args, *SMALL_MEMORY)
    assert result.returncode == 1
    assert result.stderr.startswith("error: plain_up_to = 400 leaves 1 of the lengths [200, 700]")


def test_an_answer_follows_a_schema_or_a_grammar(infllm: Run, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}')
    run = ("run", "-q", "-p", "One or two?", "-n", "48")
    result = infllm(*run, "--json-schema", str(schema))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["n"] in (1, 2)

    grammar = tmp_path / "grammar.gbnf"
    grammar.write_text('root ::= "one" | "two"')
    assert infllm(*run, "--grammar", str(grammar)).stdout.strip() in ("one", "two")

    for options, message in (
        (["--grammar", str(grammar), "--json-schema", str(schema)], "are both given"),
        (["--grammar", str(tmp_path / "none")], "none"),
        (["--grammar", str(schema)], "grammar is not GBNF"),
        (["--json-schema", str(grammar)], "json_schema cannot be made a grammar"),
    ):
        result = infllm(*run, *options)
        assert result.returncode == 1
        assert message in result.stderr
