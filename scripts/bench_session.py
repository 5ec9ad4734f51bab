"""What a session file costs and saves: reading a text, saving it, opening it in another process, answering.

    python scripts/bench_session.py
    python scripts/bench_session.py -m small.gguf --lengths 65536,1048576

The text is random tokens: what is measured does not depend on them. `copy` is what the file takes to be
copied to the disk; `open` a process that has the model loaded already; `first token` a question of 32 tokens
after it, with the file in the system's cache. `cold`: nothing of the file is in that cache at first.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
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
    t = time.perf_counter()
    copy = path.with_suffix(".copy")
    with path.open("rb") as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 24)
        target.flush()
        os.fsync(target.fileno())
    say("copy", time.perf_counter() - t)
    copy.unlink()


def decode(name: str, llm: Llama, n_tokens: int = 64) -> None:
    """Decode tokens that select other blocks all the time."""
    llm.reset_stats()
    t = time.perf_counter()
    for token in np.random.default_rng(1).integers(3, llm.n_vocab(), n_tokens).tolist():
        llm.eval([token])
    seconds = time.perf_counter() - t
    stats = llm.stats()
    assert stats is not None
    waited = stats.us_page_in_file / 1e6
    print(
        f"{name:<12} {n_tokens / seconds:>10.1f} tok/s; {stats.n_page_in_file:,} blocks from the file, "
        f"of a layer each, in {waited:.2f} s",
        flush=True,
    )


def forget_cache(path: Path) -> None:
    """Nothing of a file is in the system's cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def anonymous_bytes(pid: int | str = "self") -> int:
    """Memory of a process, without mapped files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def forks(llm: Llama, n: int) -> None:
    """What more chats on one document take."""
    document = llm.n_tokens * llm.kv_bytes_per_token()
    begin = anonymous_bytes()
    others = [llm.fork() for _ in range(n)]
    for other in others:
        other.eval([3, 4, 5])
    each = (anonymous_bytes() - begin) / n
    print(
        f"forks        {each / 2**20:>10.1f} MiB for each of {n}, "
        f"{100 * each / document:.1f} % of the document's {document / 2**20:,.1f} MiB"
    )
    for other in others:
        other.close()


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
        decode("decode", llm)
        forks(llm, 8)
        llm.reset()  # what is mapped stays in the cache
        forget_cache(path)
        llm.load_session(path)
        decode("cold decode", llm)
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
