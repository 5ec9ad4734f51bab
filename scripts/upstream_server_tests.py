"""llama.cpp's own tests of llama-server, with the method and without: what passes without it passes with it.

    python scripts/upstream_server_tests.py --bin build/test/bin
    python scripts/upstream_server_tests.py --bin build/test/bin -k "test_slot_save or test_ctx_shift"

They download their models; here the first layers of the demo model stand for the small Llama that most of
them use, so that tests which know its very words fail either way. `small`: with so little resident that
longer prompts are paged; then answers are others, and so may be what depends on their words. The exit code is
1 if a test passes without the method and not with it, where everything fits. Needs openai, aiohttp, filelock,
prometheus-client, requests and wget.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from infllm_cpp import fetch_demo_model

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "third_party/llama.cpp/tools/server/tests"
METHODS = {
    "plain": "0",
    "infllm": "1",
    "small": "n_local=64,block_size=16,n_init=16,topk=2,max_cached_blocks=2",
}

Results = dict[str, tuple[str, str]]


def first_layers(path: Path) -> None:
    sys.path.append(str(ROOT / "tests/reference"))
    from gguf_copy import copy_gguf  # type: ignore[import-not-found]

    copy_gguf(fetch_demo_model(), path, n_layer=3)


def run(args: argparse.Namespace, method: str, model: Path, folder: Path) -> Results:
    """Outcome and reason of every test."""
    results = folder / f"{method}.json"
    env = {
        **os.environ,
        "LLAMA_INFLLM": METHODS[method],
        "LLAMA_SERVER_BIN_PATH": str(args.bin.resolve() / "llama-server"),
        "LLAMA_CACHE": str(folder),
        "INFLLM_SERVER_MODEL": str(model),
        "INFLLM_SERVER_UBATCH": "64" if method == "small" else "0",  # it must fit the local window
        "INFLLM_SERVER_RESULTS": str(results),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "PORT": str(args.port),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "upstream_server_plugin", "-m", "not slow"]
    command += ["-p", "no:cacheprovider", *(["-k", args.k] if args.k else []), *args.files]
    with (folder / f"{method}.log").open("w") as log:
        subprocess.run(command, cwd=TESTS, env=env, stdout=log, stderr=log, check=False)
    if not results.exists():
        sys.exit((folder / f"{method}.log").read_text()[-3000:])
    return {name: (outcome, reason) for name, (outcome, reason) in json.loads(results.read_text()).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="of unit/, default: all")
    parser.add_argument("--bin", type=Path, required=True, help="where llama-server is")
    parser.add_argument("--methods", default="plain,infllm,small")
    parser.add_argument("-k", help="as pytest's")
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--logs", type=Path, help="folder that keeps what the tests print")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model = Path(temporary) / "model.gguf"
        first_layers(model)
        runs = {method: run(args, method, model, folder) for method in args.methods.split(",")}

    for method, results in runs.items():
        counts = Counter(outcome for outcome, _ in results.values())
        print(f"{method:<8}", ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())))
    plain = runs["plain"]
    n_lost = 0
    for method, results in runs.items():
        for name, (outcome, _) in plain.items():
            other = results.get(name, ("missing", ""))[0]
            if outcome == "passed" and other != "passed":
                n_lost += method == "infllm"
                print(f"passes without the method, {other} as {method}: {name}")
    for outcome in ("failed", "skipped"):
        print(f"\n{outcome} without the method:")
        reasons = Counter(
            (name.split("::")[0], reason) for name, (o, reason) in plain.items() if o == outcome
        )
        for (file, reason), n in sorted(reasons.items()):
            print(f"  {n:>3} of {file}{': ' if reason else ''}{reason[:90]}")
    sys.exit(1 if n_lost else 0)


if __name__ == "__main__":
    main()
