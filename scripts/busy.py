"""Decoding on a machine that is busy with other work, by number of threads and how they wait for each other.

    python scripts/busy.py --load 2

`--load` loops are run beside it for as long as it takes. With 0 the machine is as it is: on a quiet one this
shows what waiting costs there. Each figure is a median of turns, each in a process of its own, because OpenMP
reads its settings once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

SETTINGS = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
}
MAX_SECONDS = 5.0


def decode(n_threads: int, method: bool, n_decode: int) -> float:
    """Tokens per second of decoding with the demo model, after a short prompt."""
    from infllm_cpp import InfLLMConfig, Llama, fetch_demo_model

    infllm = InfLLMConfig() if method else None
    with Llama(fetch_demo_model(), n_ctx=512, n_threads=n_threads, infllm=infllm) as llm:
        llm.eval(llm.tokenize("Once upon a time there was a"))
        n_done, t_start = 0, time.perf_counter()
        while n_done < n_decode and time.perf_counter() - t_start < MAX_SECONDS:
            llm.eval([100 + n_done])
            n_done += 1
        return n_done / (time.perf_counter() - t_start)


@contextmanager
def load(n: int) -> Iterator[None]:
    """Run `n` loops meanwhile."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure(settings: dict[str, str], *args: str) -> float:
    """`decode` in a process with the environment `settings`."""
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, __file__, "--one", *args]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env={**env, **settings})
    return float(result.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--load", type=int, default=os.cpu_count(), help="loops (default: the CPUs)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--n-decode", type=int, default=32)
    parser.add_argument("--one", nargs=3, metavar=("THREADS", "METHOD", "N"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(decode(int(args.one[0]), args.one[1] == "1", int(args.one[2])))
        return

    n_cpus = os.cpu_count() or 1
    speeds: dict[tuple[str, int, str], list[float]] = {}
    with load(args.load):
        for _ in range(args.repeats):
            for method in ("1", "0"):
                for n_threads in sorted({1, n_cpus}):
                    for name, settings in SETTINGS.items():
                        if n_threads > 1 or name == "default":  # one thread waits for nobody
                            speed = measure(settings, str(n_threads), method, str(args.n_decode))
                            speeds.setdefault((method, n_threads, name), []).append(speed)
    for (method, n_threads, name), values in speeds.items():
        memory = "InfLLM memory" if method == "1" else "plain llama.cpp"
        print(f"{memory:<15}  {n_threads} threads  {name:<12} {statistics.median(values):8.2f} tok/s")


if __name__ == "__main__":
    main()
