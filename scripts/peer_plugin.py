"""A pytest plugin for llama-cpp-python's tests: models at hand in place of those that they download."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

results: dict[str, tuple[str, str]] = {}


def download(repo_id: str, filename: str, **kwargs: Any) -> str:
    if "bge" in repo_id or "mamba" in repo_id:
        pytest.skip(f"needs {repo_id}, which is refused with the method")
    if "Falcon-H1" in repo_id:
        return os.environ["INFLLM_PEER_HYBRID"]
    return os.environ["INFLLM_PEER_MODEL"]


hub: Any = importlib.import_module("huggingface_hub")
hub.hf_hub_download = download


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        results[report.nodeid] = report.outcome, reason.removeprefix("Skipped: ")


def pytest_sessionfinish() -> None:
    Path(os.environ["INFLLM_PEER_RESULTS"]).write_text(json.dumps(results))
