#!/usr/bin/env python3
"""Measure what `infllm bench` and `infllm eval` do not: text that fits costs nothing more; what slots cost.

What is compared runs alternately in one process, with the same library and threads; medians are given.
Everything is printed as Markdown and kept as JSON lines.

    python scripts/bench.py exact
    python scripts/bench.py slots -t 1
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import pydoc_data.topics
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from infllm_cpp import InfLLMConfig, Llama
from infllm_cpp.models import fetch


def prose(llm: Llama, n_tokens: int) -> list[int]:
    """Real English: Python's own language reference, as far as it goes, then again."""
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    tokens = llm.tokenize(text)
    return (tokens * (n_tokens // len(tokens) + 1))[:n_tokens]


def load(args: argparse.Namespace, n_ctx: int, method: bool) -> Llama:
    return Llama(
        args.model,
        n_ctx=n_ctx,
        n_threads=args.threads,
        n_ubatch=512,
        infllm=InfLLMConfig(**json.loads(args.infllm)) if method else None,
    )


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    def update(done: int, total: int) -> None:
        print(f"\r{label}: {done} of {total} tokens", end="", file=sys.stderr, flush=True)

    yield update
    print("\r\033[K", end="", file=sys.stderr, flush=True)


def prefill_speed(llm: Llama, tokens: list[int], name: str) -> float:
    begin = time.perf_counter()
    with progress(name) as update:
        llm.eval(tokens, progress=update)
    return len(tokens) / (time.perf_counter() - begin)


def decode_speed(llm: Llama, n: int) -> tuple[float, list[int], list[Any]]:
    """tok/s of greedy decoding, the tokens, and the logits before each of them."""
    tokens, logits = [], []
    begin = time.perf_counter()
    for _ in range(n):
        logits.append(np.array(llm.logits))
        tokens.append(int(logits[-1].argmax()))
        llm.eval(tokens[-1:])
    return n / (time.perf_counter() - begin), tokens, logits


def bench_exact(args: argparse.Namespace, report: Callable[..., None]) -> None:
    """Text that fits the resident buffer: the same logits, and nothing slower."""
    n_prompt, n_decode = 1792, 64
    # a context that could outgrow the resident buffer, so that all of the method is in the graph
    with load(args, 32768, True) as on, load(args, 4096, False) as off:
        tokens = prose(on, n_prompt)
        prefill: dict[bool, list[float]] = {True: [], False: []}
        decode: dict[bool, list[float]] = {True: [], False: []}
        diff, same = 0.0, True
        for i in range(args.repeats):
            out = {}
            for method in (True, False) if i % 2 else (False, True):
                llm = on if method else off
                llm.reset()
                prefill[method].append(prefill_speed(llm, tokens, f"exact, run {i + 1}"))
                speed, *out[method] = decode_speed(llm, n_decode)
                decode[method].append(speed)
            s = on.stats()
            if s is not None and s.n_blocks:
                sys.exit(
                    f"n_local is too small: {n_prompt + n_decode} tokens must fit the resident buffer, "
                    """use a larger one, --infllm '{"n_local": 2048}'"""
                )
            same &= out[True][0] == out[False][0]
            diff = max(diff, float(np.abs(np.array(out[True][1]) - np.array(out[False][1])).max()))
        for what, speeds in (("prefill", prefill), ("decode", decode)):
            a, b = statistics.median(speeds[True]), statistics.median(speeds[False])
            report("exact", what=what, n_tokens=n_prompt, method_tok_s=a, plain_tok_s=b, ratio=a / b)
        report("exact", what="logits", n_tokens=n_prompt + n_decode, greedy_same=same, max_abs_diff=diff)


def bench_slots(args: argparse.Namespace, report: Callable[..., None]) -> None:
    """What slots cost a CPU: processor time of a prompt and of the tokens after it, contexts in turn."""
    n_prompt, n_decode = 8192, 64
    contexts = []
    for n_slot in args.slots:
        config = InfLLMConfig(**{**json.loads(args.infllm), "max_cached_blocks": n_slot})
        llm = Llama(args.model, n_ctx=2 * n_prompt, n_threads=args.threads, n_ubatch=512, infllm=config)
        tokens = prose(llm, n_prompt + n_decode)
        begin = time.process_time()
        prefill_speed(llm, tokens[:n_prompt], f"slots, {n_slot}")
        seconds: list[float] = []
        contexts.append((n_slot, llm, time.process_time() - begin, seconds))
        llm.reset_stats()
    for token in tokens[n_prompt:]:
        for _, llm, _, seconds in contexts:
            begin = time.process_time()
            llm.eval([token])
            seconds.append(time.process_time() - begin)
    for n_slot, llm, prompt_seconds, seconds in contexts:
        s = llm.stats()
        assert s is not None
        report(
            "slots",
            n_slots=n_slot,
            n_tokens=n_prompt,
            prompt_cpu_s=prompt_seconds,
            token_cpu_ms=1e3 * statistics.median(seconds),
            page_ins_per_token=s.n_page_in / n_decode,
            resident_bytes=s.bytes_resident,
        )
        llm.close()


PARTS = {
    "exact": bench_exact,
    "slots": bench_slots,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("-m", "--model", type=Path, default=None, help="GGUF model; default: the demo model")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--slots",
        type=lambda s: [int(x) for x in s.split(",")],
        default=[4, 8, 16, 32, 64],
        help="values of max_cached_blocks, not below topk (default: 4,8,16,32,64)",
    )
    parser.add_argument("--infllm", default="{}", help='parameters of the method, JSON: {"topk": 8}')
    parser.add_argument("--json", type=Path, default=Path("bench.jsonl"), help="JSON lines are appended here")
    args = parser.parse_args()
    args.model = args.model or fetch()

    machine = f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads"
    header: list[str] = []

    def report(part: str, **values: Any) -> None:
        with args.json.open("a") as file:
            file.write(
                json.dumps({"part": part, "date": str(date.today()), "machine": machine, **values}) + "\n"
            )
        if header != list(values):
            header[:] = list(values)
            print("\n| part | " + " | ".join(values) + " |\n" + "|---" * (len(values) + 1) + "|")
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v).strip() for v in values.values())
        print(f"| {part} | " + " | ".join(cells) + " |", flush=True)

    print(f"{date.today()}, {machine}, {args.model.name}, method {args.infllm}")
    for part in args.parts:
        PARTS[part](args, report)


if __name__ == "__main__":
    main()
