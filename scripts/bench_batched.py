"""Several sequences at once: upstream's llama-batched-bench with the method and without, in turn.

    python scripts/bench_batched.py --bin build/test/bin
    python scripts/bench_batched.py --bin build/test/bin --lengths 512,8192 --sequences 1,2,4,8,16 --repeats 3

All sequences have the same text of `length` tokens, which is read once and copied; then each decodes
`--n-decode` tokens, all in one batch. Decoding is printed, tokens per second of all together, as medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
from pathlib import Path

from infllm_cpp import fetch_demo_model


def decode_speeds(
    args: argparse.Namespace, model: str, method: str, length: int, sequences: list[int]
) -> dict[int, float]:
    """Tokens per second by the number of sequences, of one run."""
    per_sequence = (length + args.n_decode + 255) // 256 * 256
    command = [str(args.bin / "llama-batched-bench"), "-m", model, "-t", str(args.threads), "-fa", "on"]
    command += ["-c", str(per_sequence * max(sequences)), "-b", "2048", "-ub", "512", "-pps"]
    command += ["-npp", str(length), "-ntg", str(args.n_decode), "-npl", ",".join(map(str, sequences))]
    command += ["--output-format", "jsonl"]
    env = {**os.environ, "LLAMA_INFLLM": method}
    out = subprocess.run(
        command, env=env, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    rows = [json.loads(line) for line in out.stdout.splitlines() if line.startswith("{")]
    return {row["pl"]: row["speed_tg"] for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", help="GGUF file; by default the demo model")
    parser.add_argument("--bin", type=Path, required=True, help="where llama-batched-bench is")
    parser.add_argument("--lengths", default="512", help="tokens of each sequence")
    parser.add_argument("--sequences", default="1,2,4,8,16")
    parser.add_argument("--n-decode", type=int, default=32, help="tokens of each sequence")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--infllm", default="1", help="parameters, as in LLAMA_INFLLM")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()

    model = args.model or str(fetch_demo_model())
    sequences = [int(n) for n in args.sequences.split(",")]
    print(f"decoding, tok/s, {Path(model).name}")
    print(f"{'tokens':>8} {'sequences':>10} {'plain':>10} {'infllm':>10} {'ratio':>8}")
    for length in map(int, args.lengths.split(",")):
        runs: dict[str, list[dict[int, float]]] = {"0": [], args.infllm: []}
        for _ in range(args.repeats):
            for method, results in runs.items():
                results.append(decode_speeds(args, model, method, length, sequences))
        for n in sequences:
            plain, infllm = (statistics.median(run[n] for run in results) for results in runs.values())
            print(f"{length:>8,} {n:>10} {plain:>10.1f} {infllm:>10.1f} {infllm / plain:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
