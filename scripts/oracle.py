#!/usr/bin/env python3
"""Would the model find a fact in prose if the right blocks were selected? The needle task, selections forced.

Answers of four kinds to the same question about the same text:

    own      blocks as the method selects them
    second   the question is read, forgotten, and read again with one selection for all layers: the blocks
             with the best mean over layers of the scores of the first reading (standard scores of each layer)
    forced   the blocks that hold the fact, while the question is read and answered
    late     the same from the last token of the question on

Blocks that were selected before stay in the other slots.

    python scripts/oracle.py --lengths 16384 --depths 10
    python scripts/oracle.py --infllm '{"search": "queries", "topk": 12, "max_cached_blocks": 12}'
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infllm_cpp import InfLLMConfig, Llama, TraceEvent
from infllm_cpp.evaluation.prose import load_prose
from infllm_cpp.evaluation.tasks import Haystack, Question, needle
from infllm_cpp.models import fetch

KINDS = ("own", "second", "forced", "late")


def fact_blocks(config: InfLLMConfig, tokens: list[int], fact: list[int]) -> list[int]:
    """Blocks that hold the last place of `fact` in `tokens`."""
    at = max(i for i in range(len(tokens)) if tokens[i : i + len(fact)] == fact)
    return sorted({(i - config.n_init) // config.block_size for i in (at - 12, at, at + len(fact) - 1)})


def select(llm: Llama, blocks: npt.ArrayLike | None) -> None:
    """From now on these blocks are selected in all layers, the first of them first; None: by their scores."""
    chosen = np.zeros((0, 1, 1)) if blocks is None else np.reshape(blocks, (1, 1, -1))
    llm._ctx.set_replay(chosen.astype(np.int32))


def standard_scores(llm: Llama, tokens: list[int]) -> npt.NDArray[np.float64]:
    """Read tokens, and give the scores of the blocks, [n_layer, n_block], as standard scores per layer."""
    events: list[TraceEvent] = []
    llm.set_trace(events.append)
    llm.eval(tokens)
    llm.set_trace(None)
    scores = np.array([event.scores for event in events], dtype=np.float64)
    standard: npt.NDArray[np.float64] = scores - scores.mean(axis=1, keepdims=True)
    standard /= scores.std(axis=1, keepdims=True)
    return standard


def answers(llm: Llama, tokens: list[int], question: Question) -> tuple[dict[str, str], str]:
    """The answers of every kind, and how the block of the fact ranked; `tokens` are read already."""
    config = llm.infllm
    assert config is not None
    n_text = len(tokens)
    out = {}

    def answer(kind: str) -> None:
        completion = llm.create_completion([*tokens, *question.tokens], max_tokens=8, temperature=0)
        out[kind] = completion["choices"][0]["text"].strip()
        select(llm, None)
        llm.truncate(n_text)

    answer("own")
    scores = standard_scores(llm, question.tokens)
    llm.truncate(n_text)
    n_block = scores.shape[1]
    fact = fact_blocks(config, tokens, llm.tokenize(" " + question.answer, add_bos=False))
    fact = [block for block in fact if 0 <= block < n_block]
    if not fact:
        return dict.fromkeys(KINDS, out["own"]), "in the local window"

    mean = scores.mean(axis=0)
    best = np.argsort(-mean)
    select(llm, best[: config.topk])
    answer("second")
    select(llm, fact)
    answer("forced")
    llm.eval(question.tokens[:-1])
    select(llm, fact)
    answer("late")

    of_layers = (scores > scores[:, fact].max(axis=1, keepdims=True)).sum(axis=1)
    n_selected = int((of_layers < config.topk).sum())
    rank = int((mean > mean[fact].max()).sum())
    return out, f"selected in {n_selected} of {len(scores)} layers, rank of the mean {rank} of {n_block}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", type=Path, default=None, help="GGUF model; default: the demo model")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--lengths", type=lambda s: [int(x) for x in s.split(",")], default=[16384])
    parser.add_argument("--depths", type=int, default=10)
    parser.add_argument("--infllm", default="{}", help='parameters of the method, JSON: {"topk": 8}')
    args = parser.parse_args()

    config = InfLLMConfig(**json.loads(args.infllm))
    print("| length | depth | fact | " + " | ".join(KINDS) + " | its block |")
    print("|---" * (len(KINDS) + 4) + "|")
    for length in args.lengths:
        right = dict.fromkeys(KINDS, 0)
        with Llama(
            args.model or fetch(), n_ctx=length + 256, n_threads=args.threads, n_ubatch=512, infllm=config
        ) as llm:
            haystack = Haystack(llm.tokenize, load_prose())
            for seed in reversed(range(args.depths)):  # the deepest first: the next text begins alike
                depth = (seed + 0.5) / args.depths
                sample = needle(haystack, length, depth, seed)
                llm.create_completion(sample.tokens, max_tokens=1, temperature=0)
                llm.truncate(len(sample.tokens))
                (question,) = sample.questions
                found, block = answers(llm, sample.tokens, question)
                for kind, text in found.items():
                    right[kind] += text.lower().startswith(question.answer)
                cells = [found.get(kind, "").split("\n")[0] for kind in KINDS]
                print(
                    f"| {length} | {depth:.2f} | {question.answer} | {' | '.join(cells)} | {block} |",
                    flush=True,
                )
        print(f"| {length} | right | | " + " | ".join(str(right[kind]) for kind in KINDS) + " | |")


if __name__ == "__main__":
    main()
