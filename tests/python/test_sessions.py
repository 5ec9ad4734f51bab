"""Session files: what was read is not read again, nor in another process; what does not fit is refused."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import SMALL
from infllm_cpp import InfLLMConfig, Llama

Run = Callable[..., "subprocess.CompletedProcess[str]"]

TEXT = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


def make(path: Path, config: InfLLMConfig | None = SMALL, n_ctx: int = 2048, **options: object) -> Llama:
    return Llama(path, n_ctx=n_ctx, n_batch=128, infllm=config, **options)  # type: ignore[arg-type]


def greedy(llm: Llama, n: int) -> tuple[list[int], list[np.ndarray]]:
    """The next tokens after token 1, and the logits before each."""
    tokens, logits = [1], []
    for _ in range(n):
        llm.eval(tokens[-1:])
        logits.append(np.array(llm.logits))
        tokens.append(int(np.argmax(logits[-1])))
    return tokens, logits


@pytest.mark.parametrize("n_tokens", [100, 1200])  # all of it is resident, or not
@pytest.mark.parametrize("position", ["true", "infllm"])
def test_the_next_tokens_are_the_same(
    first_layers_path: Path, tmp_path: Path, n_tokens: int, position: str
) -> None:
    config = InfLLMConfig(**{**SMALL.__dict__, "position": position})
    path = tmp_path / "a.session"
    with make(first_layers_path, config) as llm:
        tokens = (llm.tokenize(TEXT) * 100)[:n_tokens]
        llm.prefill(tokens)
        llm.save_session(path, data={"title": "Grass"})
        expected = greedy(llm, 64)
    with make(first_layers_path, config) as other:
        other.eval([5, 6, 7])
        assert other.load_session(path, verify=True) == {"title": "Grass"}
        assert other.tokens == tokens
        stats = other.stats()
        assert stats is not None
        assert stats.bytes_store_file == stats.bytes_store
        got = greedy(other, 64)
        assert got[0] == expected[0]
        assert np.array_equal(got[1], expected[1])

        # and the same prompt again is not read again
        assert other.prefill(tokens) >= len(tokens) - 128
    with make(first_layers_path, config, session=path) as third:
        assert third.n_tokens == n_tokens


def test_saving_again_writes_what_is_new(first_layers_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    with make(first_layers_path) as llm:
        tokens = llm.tokenize(TEXT) * 60
        llm.prefill(tokens[:1000])
        llm.save_session(path)
        inode = path.stat().st_ino
        sizes = [path.stat().st_size]
        for n in (1100, 1200, 1300):
            llm.prefill(tokens[:n])
            llm.save_session(path)
            sizes.append(path.stat().st_size)
        assert path.stat().st_ino == inode
        expected = greedy(llm, 4)[0]

        # as much anew takes more
        whole = tmp_path / "b.session"
        llm.truncate(1300)
        llm.save_session(whole)
        assert sizes[-1] - sizes[-2] < whole.stat().st_size / 2
        assert sorted(tmp_path.iterdir()) == [path, whole]
    with make(first_layers_path, session=path) as other:
        assert greedy(other, 4)[0] == expected


def test_what_does_not_fit_is_refused(model_path: Path, first_layers_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    with make(first_layers_path) as llm:
        llm.prefill((llm.tokenize(TEXT) * 60)[:1000])
        llm.save_session(path)
        with pytest.raises(TypeError, match="JSON"):
            llm.save_session(path, data={"a": object()})
        with pytest.raises(OSError, match="cannot be opened"):
            llm.save_session(tmp_path / "none" / "a.session")
        with pytest.raises(FileNotFoundError):
            llm.load_session(tmp_path / "none")
        with pytest.raises(IsADirectoryError):
            llm.load_session(tmp_path)
        with pytest.raises(ValueError, match="not a session file"):
            llm.load_session(first_layers_path)
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        bad = tmp_path / "bad.session"
        bad.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            llm.load_session(bad, verify=True)
        bad.write_bytes(damaged[: len(damaged) // 2])
        with pytest.raises(ValueError, match="cut off"):
            llm.load_session(bad)
        assert llm.n_tokens == 1000  # nothing has changed
        expected = greedy(llm, 4)[0]
    for options, message in (
        ({"type_k": "q8_0"}, "type_k: f16 in the state, q8_0 in this context"),
        ({"config": InfLLMConfig(**{**SMALL.__dict__, "block_size": 16})}, "block_size: 32 in the state, 16"),
        ({"config": InfLLMConfig(**{**SMALL.__dict__, "position": "infllm"})}, "position: true in the state"),
        (
            {"config": InfLLMConfig(**{**SMALL.__dict__, "type_store": "q8_0"})},
            "type_store: auto in the state, q8_0 in this context",
        ),
        ({"n_ctx": 768}, "1000 tokens, more than n_ctx = 768"),
        ({"config": None}, "need the InfLLM memory"),
    ):
        with (
            make(first_layers_path, **options) as other,  # type: ignore[arg-type]
            pytest.raises(ValueError, match=message),
        ):
            other.load_session(path)
    with make(model_path) as other, pytest.raises(ValueError, match="another model"):
        other.load_session(path)
    with make(first_layers_path, config=None) as plain, pytest.raises(ValueError, match="InfLLM memory"):
        plain.save_session(path)
    with make(first_layers_path, session=path) as llm:
        assert greedy(llm, 4)[0] == expected


def test_a_file_in_use_is_replaced(first_layers_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    with make(first_layers_path) as llm, make(first_layers_path) as other:
        tokens = llm.tokenize(TEXT) * 60
        llm.prefill(tokens[:1000])
        llm.save_session(path)
        other.load_session(path)
        llm.prefill(tokens[:1200])
        expected = greedy(llm, 8)[0]
        llm.truncate(1200)
        inode = path.stat().st_ino
        llm.save_session(path)
        assert path.stat().st_ino != inode  # what the other one has is as it was
        other.prefill(tokens[:1200])
        assert greedy(other, 8)[0] == expected
        other.load_session(path)
        assert greedy(other, 8)[0] == expected
        other.reset()
        inode = path.stat().st_ino
        llm.save_session(path)
        assert path.stat().st_ino == inode


def test_a_context_that_follows_its_text(first_layers_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    with Llama(first_layers_path, n_batch=512, infllm=SMALL) as llm:
        tokens = (llm.tokenize(TEXT) * 600)[:8400]  # longer than the training length
        llm.prefill(tokens)
        llm.save_session(path)
        expected = greedy(llm, 4)[0]
    with Llama(first_layers_path, n_batch=512, infllm=SMALL) as other:
        other.prefill(tokens[:100])
        bad = tmp_path / "bad.session"
        bad.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(ValueError, match="cut off"):
            other.load_session(bad)
        assert other.n_tokens == 100
        other.load_session(path)
        assert greedy(other, 4)[0] == expected


def test_recurrent_layers_and_their_checkpoints(tmp_path: Path) -> None:
    model = tmp_path / "hybrid.gguf"
    script = Path(__file__).resolve().parents[2] / "scripts" / "make_gguf.py"
    subprocess.run([sys.executable, str(script), "small-hybrid", str(model)], check=True, capture_output=True)
    config = InfLLMConfig(n_init=16, n_local=64, block_size=16, topk=4, max_cached_blocks=8, n_score=16)
    options = {"config": config, "n_ctx": 1024, "n_ubatch": 32}
    path = tmp_path / "a.session"
    tokens = [int(t) for t in np.random.default_rng(1).integers(3, 350, 500)]
    with make(model, **options) as llm:  # type: ignore[arg-type]
        llm.prefill(tokens)
        greedy(llm, 4)
        llm.save_session(path)
        expected = greedy(llm, 16)
    with make(model, session=path, **options) as other:  # type: ignore[arg-type]
        got = greedy(other, 16)
        assert got[0] == expected[0]
        assert np.array_equal(got[1], expected[1])
        assert other.prefill(tokens) >= len(tokens) - 64  # by a checkpoint


def test_read_ask_and_chat(infllm: Run, first_layers_path: Path, tmp_path: Path) -> None:
    text, session = tmp_path / "book.txt", tmp_path / "book.session"
    text.write_text(TEXT * 60)
    model = ["-m", str(first_layers_path), "--n-local", "256", "-n", "8", "--temperature", "0"]
    reading = [a for a in model if a not in ("-n", "8", "--temperature", "0")]

    result = infllm("read", str(text), "-o", str(session), *reading)
    assert result.returncode == 0, result.stderr
    assert "tokens; ask by" in result.stderr
    before = hashlib.sha256(session.read_bytes()).digest()

    # model and parameters are those of the session
    asked = infllm("run", "--session", str(session), "-p", "What is green?", "-n", "8", "--temperature", "0")
    assert asked.returncode == 0, asked.stderr
    fresh = infllm("run", "-f", str(text), "-p", "What is green?", *model)
    assert asked.stdout == fresh.stdout
    assert "more were stored" in asked.stderr
    assert hashlib.sha256(session.read_bytes()).digest() == before

    found = infllm(
        "run", "--session-dir", str(tmp_path), "-f", str(text), "-p", "What is green?", *model
    )  # fmt: skip
    assert found.stdout == fresh.stdout
    assert "more were stored" in found.stderr
    assert "more were stored" not in fresh.stderr

    again = infllm("run", "--session", str(session), "--raw", "-p", " The", *model)
    assert again.returncode == 0, again.stderr
    refused = infllm("run", "--session", str(session), "--system", "Hi", "-p", "a", *model)
    assert refused.returncode == 1
    assert "system = 'Hi' is too late" in refused.stderr

    told = infllm("info", str(session), "--verify")
    assert told.returncode == 0, told.stderr
    assert "all blocks are as they were saved" in told.stdout
    assert "0 questions" in told.stdout

    chat = infllm("chat", "--session", str(session), *model, stdin="What is green?\n/save\n")
    assert chat.returncode == 0, chat.stderr
    chat = infllm("chat", "--session", str(session), *model, stdin="And blue?\n")
    assert "1 questions so far" in chat.stderr
    assert "2 questions" in infllm("info", str(session)).stdout

    for command in (
        ("chat", "--session", str(tmp_path / "none" / "a"), *model),
        ("chat", "--session", str(tmp_path / "a"), "--no-infllm", *model),
        ("read", str(text), "-o", str(tmp_path / "none" / "a"), *reading),
        ("read", str(text), "-o", str(tmp_path / "a"), "--no-infllm", *reading),
    ):
        early = infllm(*command, stdin="Hi\n")
        assert early.returncode == 1
        assert "is no folder" in early.stderr or "need the InfLLM memory" in early.stderr
        assert not early.stdout

    other = tmp_path / "other.session"
    said = infllm("chat", *model, stdin=f"/save\n/load {session}\n/save {other}\n/load {text}\n/load\n")
    assert "/save needs the path" in said.stderr
    assert "2 questions so far" in said.stderr
    assert "not a session file" in said.stderr
    assert "/load needs the path" in said.stderr
    assert "2 questions" in infllm("info", str(other)).stdout


def test_a_prompt_finds_the_session_that_has_most_of_it(first_layers_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    folder.mkdir()
    texts = {}
    with make(first_layers_path) as llm:
        first, second = llm.tokenize(TEXT), llm.tokenize("Some other words about nothing much. ")
        texts = {
            "a": first * 30,
            "ab": first * 30 + second * 40,
            "b": second * 80,
            "short": second[:100],
        }
        for name, tokens in texts.items():
            llm.prefill(tokens)
            llm.save_session(folder / name)
        question = llm.tokenize(" What is it?")
        expected = {}
        for name, tokens in texts.items():
            llm.reset()
            expected[name] = llm([*tokens, *question], max_tokens=8, temperature=0)
    (folder / "notes.txt").write_text("no session")
    (folder / "more").mkdir()

    with make(first_layers_path, session_dir=folder) as llm:
        for name in ("ab", "a", "b", "short"):
            answer = llm([*texts[name], *question], max_tokens=8, temperature=0)
            assert answer["choices"][0]["text"] == expected[name]["choices"][0]["text"]
            n_read = answer["timings"]["prompt_n"]
            # the last ubatch of a text is read again with a question behind it
            assert n_read == len(texts[name]) + len(question) if name == "short" else n_read < 128 + 32

        # the context that has it already keeps it, and one that was saved meanwhile is found
        longer = texts["b"] + texts["a"]
        assert llm.prefill(longer) >= 1  # of b
        llm.save_session(folder / "b and a")
        llm.reset()
        assert llm.prefill(longer) == len(longer) - 32

        # one that is damaged, or that another context saved, is not used
        (folder / "b and a").write_bytes((folder / "b and a").read_bytes()[:-5000])
        llm.reset()
        assert llm.prefill(longer) < len(longer) - 32

    other = InfLLMConfig(**{**SMALL.__dict__, "block_size": 16})
    with make(first_layers_path, other, session_dir=folder) as llm:
        with pytest.warns(
            UserWarning, match="is not used: .*block_size: 32 in the state, 16 in this context"
        ):
            assert llm.prefill(texts["b"]) == 0
        assert llm.prefill(texts["b"]) == len(texts["b"]) - 32  # and nothing is said again
    with pytest.raises(NotADirectoryError, match=r"session_dir = .* is no folder"):
        make(first_layers_path, session_dir=folder / "a")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process")
def test_an_interrupted_reading_goes_on(infllm: Run, first_layers_path: Path, tmp_path: Path) -> None:
    text, session = tmp_path / "book.txt", tmp_path / "book.session"
    text.write_text(TEXT * 400)
    command = ["read", str(text), "-o", str(session), "-m", str(first_layers_path), "--n-local", "256"]
    process = subprocess.Popen(
        [sys.executable, "-m", "infllm_cpp", *command], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stderr is not None
    process.stderr.readline()  # some progress
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(60) == 130, rest
    assert "the same command goes on from there" in rest

    told = infllm("info", str(session))
    assert told.returncode == 0, told.stderr
    done = infllm(*command)
    assert done.returncode == 0, done.stderr
    n_left = int(done.stderr.split("reading: ")[1].split(" of ")[1].split(" tokens")[0].replace(",", ""))
    n_tokens = int(done.stderr.split("book.session: ")[1].split(" tokens")[0].replace(",", ""))
    assert n_left < n_tokens


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_reading_goes_on(infllm: Run, first_layers_path: Path, tmp_path: Path) -> None:
    text, session = tmp_path / "book.txt", tmp_path / "book.session"
    text.write_text(TEXT * 420)
    command = ["read", str(text), "-o", str(session), "-m", str(first_layers_path), "--n-local", "256"]
    with subprocess.Popen(
        [sys.executable, "-m", "infllm_cpp", *command], stderr=subprocess.DEVNULL, env=os.environ
    ) as process:
        while not session.exists():
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert "8," in infllm("info", str(session), "--verify").stdout

    done = infllm(*command)
    assert done.returncode == 0, done.stderr
    n_left = int(done.stderr.split("reading: ")[1].split(" of ")[1].split(" tokens")[0].replace(",", ""))
    n_tokens = int(done.stderr.split("book.session: ")[1].split(" tokens")[0].replace(",", ""))
    assert n_left <= n_tokens - 8192
    whole = tmp_path / "whole.session"
    assert infllm(*command[:2], "-o", str(whole), *command[4:]).returncode == 0
    ask = ["run", "-p", "What is green?", "-m", str(first_layers_path), "--n-local", "256", "-n", "8"]
    answers = [infllm(*ask, "--temperature", "0", "--session", str(path)).stdout for path in (session, whole)]
    assert answers[0] == answers[1]
