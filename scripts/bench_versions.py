#!/usr/bin/env python3
"""Compare two builds of infllm-cpp: reading and decoding, at growing lengths of one context, alternately.

Both run as processes of their own that live as long as the benchmark does. Only one works at a time: a piece
of the prompt, then a burst of tokens, and the other one the same. Medians over the pieces and bursts, and
their ratio.

    python scripts/bench_versions.py --before ../old/python --after python
    python scripts/bench_versions.py --before ../old/python --after python -m gemma3-270m --lengths 2048,8192
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PIECE = 1024  # tokens of a prompt that are read before it is the other's turn
BURST = 16  # tokens that are decoded before it is


def work(args: argparse.Namespace) -> None:
    """Obey: a line is "read N" or "decode N", the answer its seconds."""
    from bench import prose
    from infllm_cpp import InfLLMConfig, Llama
    from infllm_cpp.models import fetch, find

    path = find(args.model) if args.model else fetch()
    with Llama(
        str(path), n_ctx=args.n_ctx, n_threads=args.threads, n_ubatch=512, infllm=InfLLMConfig()
    ) as llm:
        tokens = prose(llm, args.n_ctx)
        done = 0
        print("ready", flush=True)
        for line in sys.stdin:
            what, n = line.split()
            begin = time.perf_counter()
            if what == "read":
                llm.eval(tokens[done : done + int(n)])
                done += int(n)
            else:
                for i in range(int(n)):
                    llm.eval([tokens[done + i]])
            seconds = time.perf_counter() - begin
            if what == "decode":
                llm.truncate(done)
            print(seconds, flush=True)


class Version:
    def __init__(self, python: Path, args: argparse.Namespace) -> None:
        scripts = Path(__file__).resolve().parent
        env = {**os.environ, "PYTHONPATH": f"{python.resolve()}{os.pathsep}{scripts}"}
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--work",
            "--n-ctx",
            str(args.n_ctx),
            "-t",
            str(args.threads),
        ]
        self.process = subprocess.Popen(
            command + (["-m", args.model] if args.model else []),
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("a version ended early: run it by itself with --work")
        return line.strip()

    def ask(self, what: str, n: int) -> float:
        assert self.process.stdin is not None
        print(what, n, file=self.process.stdin, flush=True)
        return float(self.answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="folder that holds the package infllm_cpp of a build")
    parser.add_argument("--after", type=Path, help="the same of the other one")
    parser.add_argument(
        "-m", "--model", default="", help="GGUF file or name of a model; default: the demo model"
    )
    parser.add_argument("--lengths", default="2048,8192,32768", help="tokens, ascending")
    parser.add_argument("--bursts", type=int, default=8, help=f"of {BURST} tokens, at each length")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--n-ctx", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args)
        return
    if not args.before or not args.after:
        parser.error("--before and --after are needed")

    lengths = [int(n) for n in args.lengths.split(",")]
    args.n_ctx = max(lengths) + 2 * BURST
    versions = {"before": Version(args.before, args), "after": Version(args.after, args)}
    print("| tokens | what | before, tok/s | after, tok/s | ratio |\n|---|---|---|---|---|")
    done = 0
    for length in lengths:
        speeds: dict[tuple[str, str], list[float]] = {}
        steps = [("read", min(PIECE, length - i)) for i in range(done, length, PIECE)]
        for turn, (what, n) in enumerate(steps + [("decode", BURST)] * args.bursts):
            for name in sorted(versions, reverse=turn % 2 == 1):
                speeds.setdefault((what, name), []).append(n / versions[name].ask(what, n))
        done = length
        for what in ("read", "decode"):
            a, b = (statistics.median(speeds[what, name]) for name in ("before", "after"))
            print(f"| {length:,} | {what} | {a:.1f} | {b:.1f} | {b / a:.3f} |", flush=True)
    for version in versions.values():
        version.close()
    print(
        json.dumps({"lengths": lengths, "threads": args.threads, "model": args.model or "demo"}),
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
