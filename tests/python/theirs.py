"""llama-cpp-python with our libllama, in a process of its own: it loads the library, too."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import infllm_cpp


def embed(path: Path, texts: list[str], **options: Any) -> dict[str, Any]:
    """What its `embed` returns: ``vectors`` and ``n_tokens``."""
    answer: dict[str, Any] = _ask(
        {"path": str(path), "options": {**options, "embedding": True}, "texts": texts}
    )
    return answer


def last_logits(path: Path, tokens: list[int], **options: Any) -> list[float]:
    """Logits of the last of `tokens`; those of the others are computed, too."""
    answer: list[float] = _ask(
        {"path": str(path), "options": {**options, "logits_all": True}, "tokens": tokens}
    )
    return answer


def _ask(job: dict[str, Any]) -> Any:
    result = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "LLAMA_CPP_LIB_PATH": str(infllm_cpp.library_dir()), "LLAMA_INFLLM": "0"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def main() -> None:
    job = json.load(sys.stdin)
    llama_cpp: Any = importlib.import_module("llama_cpp")
    llm = llama_cpp.Llama(job["path"], verbose=False, **job["options"])
    if "texts" in job:
        vectors, n_tokens = llm.embed(job["texts"], return_count=True)
        print(json.dumps({"vectors": vectors, "n_tokens": n_tokens}))
    else:
        llm.eval(job["tokens"])
        print(json.dumps(llm.scores[llm.n_tokens - 1].tolist()))


if __name__ == "__main__":
    main()
