"""A text far longer than memory would hold, read once into a session file, and ten pass keys asked of it.

    python scripts/long_session.py --n-tokens 1000000 --path book.session
    python scripts/long_session.py --n-tokens 1000000 --path book.session --ram 1024

The text is `multi-passkey` of `infllm eval`: ten numbers, each of a city, all over a text of no meaning. It
is saved as it is read, and what is interrupted goes on. The questions are asked by another process, which
opens the file; with `--ram MIB` the system gives that process so much memory, with what it has of files in
the cache: it runs in a control group of its own (Linux, version 1, as root).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from infllm_cpp import InfLLMConfig, Llama, fetch_demo_model
from infllm_cpp.evaluation.haystack import Haystack, Sample
from infllm_cpp.evaluation.tasks import fill
from infllm_cpp.passkey import is_right

N_SAVED = 65536  # tokens
GROUPS = Path("/sys/fs/cgroup/memory")


def load(args: argparse.Namespace) -> Llama:
    return Llama(
        args.model,
        n_ctx=args.n_tokens,
        n_threads=args.threads,
        infllm=InfLLMConfig(type_store=args.type_store),
    )


def make_sample(llm: Llama, args: argparse.Namespace) -> Sample:
    return fill("multi-passkey", Haystack(llm, ""), args.n_tokens, 0.0, args.seed)


def read(args: argparse.Namespace) -> None:
    """Read the text into the session, or the rest of it."""
    with load(args) as llm:
        tokens = make_sample(llm, args).tokens
        if args.path.exists():
            llm.load_session(args.path)
        begin, first = time.perf_counter(), llm.n_tokens
        while llm.n_tokens < len(tokens):
            t, n = time.perf_counter(), llm.n_tokens
            llm.prefill(tokens[: n // N_SAVED * N_SAVED + N_SAVED])
            seconds = time.perf_counter() - t
            t = time.perf_counter()
            llm.save_session(args.path)
            speed = (llm.n_tokens - n) / seconds
            print(
                f"{llm.n_tokens:>10,} tokens, {speed:.0f} tok/s, saved in {time.perf_counter() - t:.1f} s",
                flush=True,
            )
        print(f"read {llm.n_tokens - first:,} tokens in {time.perf_counter() - begin:.0f} s, with saving")


def group_of(pid: int) -> Path:
    return GROUPS / f"infllm-{pid}"


def limit_memory(n_bytes: int) -> None:
    """No more memory for this process than so many bytes, files in the cache included."""
    group = group_of(os.getpid())
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(n_bytes))
    (group / "cgroup.procs").write_text(str(os.getpid()))


def ask(args: argparse.Namespace) -> None:
    """Open the session, and ask for every pass key."""
    if args.ram:
        limit_memory(args.ram << 20)
    with load(args) as llm:
        sample = make_sample(llm, args)
        t = time.perf_counter()
        llm.load_session(args.path)
        print(f"open         {time.perf_counter() - t:.2f} s, {llm.n_tokens:,} tokens")
        n_right = 0
        for question in sample.questions:
            llm.reset_stats()
            t = time.perf_counter()
            completion = llm.create_completion(
                [*sample.tokens, *question.tokens], max_tokens=9, temperature=0
            )
            seconds = time.perf_counter() - t
            answer = completion["choices"][0]["text"]
            right = is_right(answer, question.answers[0])
            n_right += right
            stats = llm.stats()
            assert stats is not None
            print(
                f"{question.answers[0]}  {answer.strip()[:12]!r:<16}{'right' if right else 'wrong'}  "
                f"{seconds:.2f} s, {stats.n_page_in:,} page-ins, {stats.n_page_in_file:,} from the file",
                flush=True,
            )
        stats = llm.stats()
        assert stats is not None
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        store, file = stats.bytes_store / 2**20, args.path.stat().st_size / 2**20
        print(
            f"{n_right} of {len(sample.questions)} are right; most memory {memory:.0f} MiB "
            f"with what is mapped, store {store:,.0f} MiB, file {file:,.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", help="GGUF file; by default the demo model")
    parser.add_argument(
        "--n-tokens", type=int, default=1_000_000, help="of text, question and answer together"
    )
    parser.add_argument("--path", type=Path, required=True, help="the session")
    parser.add_argument("--type-store", default="q8_0", choices=("auto", "q8_0", "q4_0"))
    parser.add_argument("--ram", type=int, help="MiB that the process which asks may have")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    parser.add_argument("--step", choices=("read", "ask"), help=argparse.SUPPRESS)
    args = parser.parse_args()

    args.model = args.model or str(fetch_demo_model())
    if args.step:
        {"read": read, "ask": ask}[args.step](args)
        return
    for step in ("read", "ask"):
        with subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--step", step]) as process:
            process.wait()
        if (group := group_of(process.pid)).exists():
            group.rmdir()
        if process.returncode != 0:
            sys.exit(process.returncode)


if __name__ == "__main__":
    main()
