#!/usr/bin/env python3
"""Would the model find a fact in prose if the right blocks were selected? Needles, with selections forced.

Answers of three kinds to the same question about the same text:

    own      blocks as the method selects them
    forced   the blocks that hold the fact asked for, while the question is read and answered
    late     the same from the last token of the question on

The rest of `topk` are the most recent blocks; blocks that were selected before may stay in the other slots.

    python scripts/oracle.py --lengths 16384 --depths 10
    python scripts/oracle.py --infllm '{"search": "queries", "topk": 12, "max_cached_blocks": 12}'
    python scripts/oracle.py --task multi-needle --lengths 8192 --depths 5
    python scripts/oracle.py --task kv-retrieval --lengths 2048 --n-ubatch 64 --infllm '{"n_local": 128}'
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from infllm_cpp import InfLLMConfig, Llama, TraceEvent
from infllm_cpp.evaluation.haystack import Haystack, Question
from infllm_cpp.evaluation.prose import load_prose
from infllm_cpp.evaluation.tasks import fill
from infllm_cpp.models import fetch
from infllm_cpp.passkey import is_right

KINDS = ("own", "forced", "late")


def fact_blocks(config: InfLLMConfig, tokens: list[int], fact: list[int], n_stored: int) -> list[int]:
    """Blocks of the first `n_stored` tokens that hold the last place of `fact`, or the words before it."""
    at = max(i for i in range(len(tokens)) if tokens[i : i + len(fact)] == fact)
    places = (at - 12, at, at + len(fact) - 1)
    return sorted({(i - config.n_init) // config.block_size for i in places if config.n_init <= i < n_stored})


def select(llm: Llama, blocks: list[int] | None) -> None:
    """From now on select these blocks and the most recent in all layers; None: those with the best scores."""
    chosen = np.zeros((0, 1, 1)) if blocks is None else np.reshape(blocks, (1, 1, -1))
    llm._ctx.set_replay(chosen.astype(np.int32))


def answers(llm: Llama, task: str, tokens: list[int], question: Question) -> tuple[dict[str, str], str]:
    """The answers of every kind, and where the block of the fact was selected; `tokens` are read already."""
    config = llm.infllm
    assert config is not None
    n_text = len(tokens)
    out = {}

    def answer(kind: str) -> None:
        completion = llm.create_completion([*tokens, *question.tokens], max_tokens=12, temperature=0)
        out[kind] = completion["choices"][0]["text"].strip()
        select(llm, None)
        llm.truncate(n_text)

    answer("own")
    events: dict[int, TraceEvent] = {}  # the last of each layer
    llm.set_trace(lambda event: events.update({event.il: event}))
    llm.eval(question.tokens)
    llm.set_trace(None)
    llm.truncate(n_text)

    space = "" if task == "kv-retrieval" else " "  # within a quoted value there is none
    answer_tokens = llm.tokenize(space + question.answers[0], add_bos=False)
    stored = max(len(event.scores) for event in events.values()) * config.block_size + config.n_init
    fact = fact_blocks(config, tokens, answer_tokens, stored)
    if not fact:
        return dict.fromkeys(KINDS, out["own"]), "in the local window"

    select(llm, fact)
    answer("forced")
    llm.eval(question.tokens[:-1])
    select(llm, fact)
    answer("late")

    n_selected = sum(bool(set(fact) & set(event.selected.tolist())) for event in events.values())
    return out, f"selected in {n_selected} of {len(events)} layers"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", type=Path, default=None, help="GGUF model; default: the demo model")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--task", choices=("needle", "multi-needle", "kv-retrieval"), default="needle")
    parser.add_argument("--lengths", type=lambda s: [int(x) for x in s.split(",")], default=[16384])
    parser.add_argument("--depths", type=int, default=10, help="texts; needles are at another depth in each")
    parser.add_argument("--n-ubatch", type=int, default=512)
    parser.add_argument("--infllm", default="{}", help='parameters of the method, JSON: {"topk": 8}')
    args = parser.parse_args()

    config = InfLLMConfig(**json.loads(args.infllm))
    print("| length | text | fact | " + " | ".join(KINDS) + " | its block |")
    print("|---" * (len(KINDS) + 4) + "|")
    for length in args.lengths:
        right = dict.fromkeys(KINDS, 0)
        with Llama(
            args.model or fetch(),
            n_ctx=length,
            n_threads=args.threads,
            n_ubatch=args.n_ubatch,
            infllm=config,
        ) as llm:
            haystack = Haystack(llm, load_prose())
            for seed in reversed(range(args.depths)):  # the deepest first: the next text begins alike
                depth = (seed + 0.5) / args.depths
                sample = fill(args.task, haystack, length, depth, seed)
                llm.create_completion(sample.tokens, max_tokens=1, temperature=0)
                llm.truncate(len(sample.tokens))
                for question in sample.questions:
                    found, block = answers(llm, args.task, sample.tokens, question)
                    for kind, text in found.items():
                        right[kind] += is_right(text, question.answers[0])
                    cells = [found[kind].split("\n")[0] for kind in KINDS]
                    print(
                        f"| {length} | {seed} | {question.answers[0]} | {' | '.join(cells)} | {block} |",
                        flush=True,
                    )
        print(f"| {length} | right | | " + " | ".join(str(right[kind]) for kind in KINDS) + " | |")


if __name__ == "__main__":
    main()
