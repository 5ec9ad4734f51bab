"""Test suites of others, run with the method and without: what passes without it must pass with it.

Used by upstream_server_tests.py and peer_tests.py; to pytest it is a plugin that writes down how each test
ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

METHODS = {
    "plain": "0",
    "infllm": "1",
    "small": "n_local=64,block_size=16,n_init=16,topk=2,max_cached_blocks=2",
}
"""Values of ``LLAMA_INFLLM``; `small` keeps so little resident that short prompts are paged."""

Results = dict[str, tuple[str, str]]
"""Outcome and reason of each test."""

_results: Results = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        _note(report.nodeid, report.outcome, report.longrepr)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.outcome != "passed":
        _note(report.nodeid, report.outcome, report.longrepr)


def _note(name: str, outcome: str, longrepr: object) -> None:
    reason = str(longrepr[2]) if isinstance(longrepr, tuple) else ""
    _results[name] = outcome, reason.removeprefix("Skipped: ")


def pytest_sessionfinish() -> None:
    if path := os.environ.get("INFLLM_OUTCOMES"):
        Path(path).write_text(json.dumps(_results))


def run(
    method: str, arguments: list[str], plugin: str, folder: Path, logs: Path, env: Mapping[str, str]
) -> Results:
    """Run pytest in `folder` with a plugin of ours that says what stands for the models of the suite."""
    out, log = logs.resolve() / f"{method}.json", logs / f"{method}.log"
    scripts = Path(__file__).resolve().parent
    path = os.pathsep.join([str(scripts), str(folder), os.environ.get("PYTHONPATH", "")])
    variables = {"LLAMA_INFLLM": METHODS[method], "INFLLM_OUTCOMES": str(out), "PYTHONPATH": path}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "outcomes", "-p", plugin, "-p", "no:cacheprovider"]
    with log.open("w") as file:
        subprocess.run(
            [*command, *arguments],
            cwd=folder,
            env={**os.environ, **env, **variables},
            stdout=file,
            stderr=file,
            check=False,
        )
    if not out.exists():
        sys.exit(log.read_text()[-3000:])
    return {name: (outcome, reason) for name, (outcome, reason) in json.loads(out.read_text()).items()}


def compare(runs: Mapping[str, Results]) -> int:
    """Print how many tests ended how; returns how many pass as `plain` and not as `infllm`."""
    for method, results in runs.items():
        counts = Counter(outcome for outcome, _ in results.values())
        print(f"{method:<8}", ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())))
    n_lost = 0
    for name, (outcome, _) in runs["plain"].items():
        for method, results in runs.items():
            other = results.get(name, ("missing", ""))[0]
            if outcome == "passed" and other != "passed":
                n_lost += method == "infllm"
                print(f"passes without the method, {other} as {method}: {name}")
    for outcome in ("failed", "skipped"):
        print(f"\n{outcome} without the method:")
        reasons = Counter(
            (name.split("::")[0], reason) for name, (o, reason) in runs["plain"].items() if o == outcome
        )
        for (file, reason), n in sorted(reasons.items()):
            print(f"  {n:>3} of {file}{': ' if reason else ''}{reason[:90]}")
    return n_lost
