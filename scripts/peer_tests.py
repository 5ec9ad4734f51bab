"""llama-cpp-python's own tests on our library, with the method and without.

    python scripts/peer_tests.py

The tests are those of the pinned source distribution, as they are; the demo model, and a hybrid one of random
weights, stand for the models that they download, so that what knows their words fails either way. The exit
code is 1 if a test passes without the method and not with it. Needs llama-cpp-python, installed without
libraries of its own, scipy and huggingface-hub.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import fetch_llama_cpp
from infllm_cpp import fetch_demo_model, library_dir

SCRIPTS = Path(__file__).resolve().parent
METHODS = {
    "plain": "0",
    "infllm": "1",
    "small": "n_local=64,block_size=16,n_init=16,topk=2,max_cached_blocks=2",
}
WANTED = ("/tests/", "/vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf")

Results = dict[str, tuple[str, str]]


def unpack(sdist: Path, folder: Path) -> Path:
    """The tests and the vocabulary that they read; returns the folder to run them in."""
    root = f"llama_cpp_python-{fetch_llama_cpp.VERSION}"
    with tarfile.open(sdist) as tar:
        for member in tar:
            if member.isfile() and member.name.startswith((root + WANTED[0], root + WANTED[1])):
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None
                target.write_bytes(content.read())
    return folder / root


def run(method: str, folder: Path, log: Path, k: str | None) -> Results:
    """Outcome and reason of every test."""
    results = folder / f"{method}.json"
    env = {
        **os.environ,
        "LLAMA_INFLLM": METHODS[method],
        "LLAMA_CPP_LIB_PATH": str(library_dir()),
        "INFLLM_PEER_MODEL": str(fetch_demo_model()),
        "INFLLM_PEER_HYBRID": str(folder / "hybrid.gguf"),
        "INFLLM_PEER_RESULTS": str(results),
        "PYTHONPATH": str(SCRIPTS),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "peer_plugin", "-p", "no:cacheprovider", "tests"]
    with log.open("w") as out:
        subprocess.run(
            [*command, *(["-k", k] if k else [])], cwd=folder, env=env, stdout=out, stderr=out, check=False
        )
    if not results.exists():
        sys.exit(log.read_text()[-3000:])
    return {name: (outcome, reason) for name, (outcome, reason) in json.loads(results.read_text()).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="plain,infllm,small")
    parser.add_argument("--logs", type=Path, help="folder that keeps what the tests print")
    parser.add_argument("-k", help="as pytest's")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        logs = args.logs or Path(temporary)
        logs.mkdir(parents=True, exist_ok=True)
        folder = unpack(fetch_llama_cpp.download(fetch_llama_cpp.VERSION, Path(temporary)), Path(temporary))
        make_hybrid = [
            sys.executable,
            str(SCRIPTS / "make_gguf.py"),
            "small-hybrid",
            str(folder / "hybrid.gguf"),
        ]
        subprocess.run(make_hybrid, check=True, stdout=subprocess.DEVNULL)
        runs = {m: run(m, folder, logs / f"{m}.log", args.k) for m in args.methods.split(",")}

    for method, results in runs.items():
        counts = Counter(outcome for outcome, _ in results.values())
        print(f"{method:<8}", ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())))
    n_lost = 0
    for name, (outcome, reason) in runs["plain"].items():
        for method, results in runs.items():
            other = results.get(name, ("missing", ""))[0]
            if outcome == "passed" and other != "passed":
                n_lost += method == "infllm"
                print(f"passes without the method, {other} as {method}: {name}")
        if outcome != "passed":
            print(f"{outcome} without the method: {name} {reason[:90]}")
    sys.exit(1 if n_lost else 0)


if __name__ == "__main__":
    main()
