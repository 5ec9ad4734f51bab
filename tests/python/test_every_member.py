"""Every public member of a Llama, wherever it is used from: it works or says why not, and never hangs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "every_member.py"

CALLBACK = "a callback or a signal handler must not use the Llama that is computing"
CLOSED = "this Llama is closed: make a new one"
FORKED = "this Llama was made before this process was forked"
NO_COPY = "a Llama cannot be pickled or copied"

COMPUTE = {"__call__", "create_completion", "create_completion(stream=True)", "create_chat_completion"}
COMPUTE |= {
    "eval",
    "fork",
    "embed",
    "create_embedding",
    "load_session",
    "load_state",
    "prefill",
    "logits",
    "reset",
    "save_session",
    "save_state",
    "set_trace",
    "truncate",
}


def outcomes_in(model_path: Path, situation: str) -> dict[str, str]:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(model_path), situation],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["lives_on"]
    outcomes: dict[str, str] = answer["outcomes"]
    for name in ("copy", "deepcopy", "pickle"):
        assert outcomes.pop(name).startswith(f"TypeError: {NO_COPY}")
    assert outcomes["interrupt"] == "works"
    for name in ("embed", "create_embedding"):
        if outcomes[name].startswith("RuntimeError: this Llama is for text"):
            outcomes[name] = "works"
    return outcomes


def assert_only(outcomes: dict[str, str], message: str, names: set[str]) -> None:
    """All members work but `names`, and perhaps others, which raise `message`."""
    refused = f"RuntimeError: {message}"
    assert {n: o for n, o in outcomes.items() if o != "works" and not o.startswith(refused)} == {}
    assert {n for n in names if outcomes[n] == "works"} == set()


@pytest.mark.parametrize("situation", ["in_progress_callback", "in_trace_callback", "in_signal_handler"])
def test_while_the_same_thread_computes(first_layers_path: Path, situation: str) -> None:
    outcomes = outcomes_in(first_layers_path, situation)
    assert_only(outcomes, CALLBACK, {*COMPUTE, "close", "__exit__"})
    for name in ("stats", "tokenize", "n_tokens", "metadata"):
        assert outcomes[name] == "works"


def test_while_another_thread_computes(first_layers_path: Path) -> None:
    outcomes = outcomes_in(first_layers_path, "in_another_thread")
    # they wait; what there was to read may have been forgotten by the other thread meanwhile
    if outcomes["logits"].startswith("RuntimeError: there are no logits"):
        outcomes["logits"] = "works"
    overtaken = "RuntimeError: another call changed the stored tokens"
    assert {n: o for n, o in outcomes.items() if o != "works" and not o.startswith(overtaken)} == {}


def test_after_close(first_layers_path: Path) -> None:
    outcomes = outcomes_in(first_layers_path, "after_close")
    assert_only(outcomes, CLOSED, {*COMPUTE, "stats", "tokenize"})
    assert outcomes["close"] == outcomes["__exit__"] == "works"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_after_a_fork(first_layers_path: Path) -> None:
    outcomes = outcomes_in(first_layers_path, "after_fork")
    assert_only(outcomes, FORKED, {*COMPUTE, "stats", "tokenize"})
    assert outcomes["close"] == outcomes["__exit__"] == "works"
