"""What a session file costs and saves: reading a text, saving it, opening it in another process, answering.

    python scripts/bench_session.py
    python scripts/bench_session.py -m small.gguf --lengths 65536,1048576

The text is random tokens: what is measured does not depend on them. `open` is a process that has the model
loaded already; `first token` a question of 32 tokens after it, with the file in the system's cache.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from infllm_cpp import Llama, fetch_demo_model


def say(name: str, seconds: float) -> None:
    print(f"{name:<12} {seconds:>10.3f} s", flush=True)


def save(model: str, path: Path, n_tokens: int, n_threads: int) -> None:
    """Read a text, and save it twice."""
    with Llama(model, n_ctx=n_tokens + 512, n_threads=n_threads) as llm:
        tokens = np.random.default_rng(0).integers(3, llm.n_vocab(), n_tokens).tolist()
        t = time.perf_counter()
        llm.prefill(tokens)
        say("read", time.perf_counter() - t)
        t = time.perf_counter()
        llm.save_session(path)
        say("save", time.perf_counter() - t)
        llm.eval(tokens[:200])
        t = time.perf_counter()
        llm.save_session(path)
        say("save again", time.perf_counter() - t)


def answer(model: str, path: Path, n_tokens: int, n_threads: int) -> None:
    """Open a session, and answer."""
    with Llama(model, n_ctx=n_tokens + 512, n_threads=n_threads) as llm:
        t = time.perf_counter()
        llm.load_session(path)
        say("open", time.perf_counter() - t)
        t = time.perf_counter()
        llm.eval(list(range(3, 35)))
        llm.eval([3])
        say("first token", time.perf_counter() - t)
        t = time.perf_counter()
        llm.load_session(path, verify=True)
        say("open, verify", time.perf_counter() - t)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"most memory  {memory:>10.0f} MiB, with what is mapped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", help="GGUF file; by default the demo model")
    parser.add_argument("--lengths", default="8192,32768", help="tokens")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()

    model = args.model or str(fetch_demo_model())
    if args.step:
        {"save": save, "answer": answer}[args.step](model, args.path, int(args.lengths), args.threads)
        return
    for n_tokens in args.lengths.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bench.session"
            print(f"{int(n_tokens):,} tokens, {Path(model).name}", flush=True)
            for step in ("save", "answer"):
                command = [sys.executable, __file__, "-m", model, "--lengths", n_tokens, "--step", step]
                subprocess.run([*command, "--path", str(path), "-t", str(args.threads)], check=True)
            print(f"file         {path.stat().st_size / 2**20:>10.1f} MiB")


if __name__ == "__main__":
    main()
