#!/usr/bin/env python3
"""Record what a real model selects while it decodes, for scripts/gpu_check.py replay.

    python scripts/record_trace.py                   SmolLM2-135M, after 32,768 tokens of prose

Writes scripts/gpu_trace.npz: selected int16 [n_step, n_layer, topk], best first, and n_tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from bench import prose
from infllm_cpp import InfLLMConfig, Llama, TraceEvent, fetch_demo_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", type=Path, default=None, help="GGUF model; default: the demo model")
    parser.add_argument("-n", "--tokens", type=int, default=32768)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("gpu_trace.npz"))
    args = parser.parse_args()

    n_ctx = args.tokens + args.steps + 256
    with Llama(args.model or fetch_demo_model(), n_ctx=n_ctx, infllm=InfLLMConfig(paging="host")) as llm:
        llm.eval(
            prose(llm, args.tokens),
            progress=lambda done, total: print(f"\r{done} of {total}", end="", flush=True),
        )
        events: list[TraceEvent] = []
        llm.set_trace(events.append)
        for _ in range(args.steps):
            llm.eval([int(np.argmax(llm.logits))])
        n_layer = len(events) // args.steps
        selected = np.array([event.selected for event in events], dtype=np.int16)
        np.savez_compressed(
            args.output, selected=selected.reshape(args.steps, n_layer, -1), n_tokens=np.int64(args.tokens)
        )
    print(f"\n{args.output}: {args.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
