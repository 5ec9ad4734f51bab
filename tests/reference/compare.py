"""Compare infllm-cpp with the NumPy reference on real text, and show what each deliberate deviation changes.

    OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=passive python tests/reference/compare.py --model model.gguf

One line for each variant of the reference: the share of selected blocks that are the same, averaged over
layers and chunks, and of the layer where it is lowest; the perplexity of the tokens from the first selection
on, its ratio, and the ratio for the whole text; how often both hold the same token most likely, from the
first selection on; and how many of the tokens generated greedily after the text are equal before the first
difference.

With --same-states the scoring alone: all variants choose with the queries and keys of one run of the
published method, so that no difference comes from what earlier layers and chunks selected.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf_copy import copy_gguf
from infllm_reference import (
    OURS,
    OURS_BY_KEYS,
    PUBLISHED,
    Budget,
    Floats,
    LayerMemory,
    Model,
    Reference,
    Switches,
    best,
)

import infllm_cpp
from infllm_cpp import InfLLMConfig, Llama

Selected = dict[tuple[int, int], set[int]]
"""Blocks by layer and position of the chunk."""


@dataclass
class Run:
    """What one implementation makes of a text."""

    nll: npt.NDArray[np.float64]
    """Of tokens 1, 2, ..., natural logarithm."""
    top: npt.NDArray[np.int64]
    """Most likely next token after each token."""
    greedy: list[int]
    selected: Selected


@dataclass
class Comparison:
    overlap: float
    chance: float
    """Overlap of selections made by chance."""
    layers: dict[int, float]
    perplexity_ours: float
    perplexity_reference: float
    ratio_all: float
    """Of the perplexities of the whole text."""
    same_top: float
    equal_greedy: int

    @property
    def ratio(self) -> float:
        return self.perplexity_ours / self.perplexity_reference


VARIANTS: dict[str, tuple[Switches, str]] = {
    "as published, C++ too": (PUBLISHED, "faithful"),
    "as published, but positions of ours, C++ as published": (
        replace(PUBLISHED, position=OURS.position),
        "faithful",
    ),
    "as published": (PUBLISHED, "true"),
    "as published, window as in the code": (replace(PUBLISHED, window="twice"), "true"),
    "as ours": (OURS, "true"),
    "ours, but all scoring as published": (
        replace(PUBLISHED, attend=OURS.attend, position=OURS.position),
        "true",
    ),
    "ours, but softmax sums": (replace(OURS, scores="softmax"), "true"),
    "ours, but each token's own window": (replace(OURS, followers="window"), "true"),
    "ours, but per query head": (replace(OURS, heads="query"), "true"),
    "ours, but one representative key": (replace(OURS, parts="one"), "true"),
    "ours, but one mean query a chunk": (replace(OURS, query="mean"), "true"),
    "ours, but only topk blocks attended": (replace(OURS, attend="topk"), "true"),
    "ours, but positions of the paper": (replace(OURS, position="paper"), "true"),
    "ours, but searched by keys": (OURS_BY_KEYS, "true"),
    "by keys, as ours": (OURS_BY_KEYS, "keys"),
    "by keys, each layer alone": (replace(OURS_BY_KEYS, agree="layer"), "keys"),
    "as published, to ours by keys": (PUBLISHED, "keys"),
    "as published, to ours at positions of slots": (PUBLISHED, "infllm"),
    "as ours, at positions of slots": (replace(OURS, position="slots"), "infllm"),
}
"""Switches of the reference, and mode of infllm-cpp (see `config`)."""


def prose(llm: Llama, n_tokens: int) -> list[int]:
    """Real English: Python's language reference."""
    topics = pydoc_data.topics.topics
    tokens = llm.tokenize("\n".join(topics[name] for name in sorted(topics)))
    if len(tokens) < n_tokens:
        raise ValueError(f"n_tokens = {n_tokens} is more than the {len(tokens)} of the text")
    return tokens[:n_tokens]


def config(budget: Budget, mode: str) -> InfLLMConfig:
    """`mode`: a `position`, queries searching; ``"keys"``: keys do, at true positions; or ``"faithful"``, as
    published but for the positions, which are true ones."""
    if mode == "faithful":
        faithful = config(budget, "true")
        return replace(
            faithful, max_cached_blocks=None, n_repr=1, n_score=None, attend="topk", scores="published"
        )
    return InfLLMConfig(
        n_init=budget.n_init,
        n_local=budget.n_local,
        block_size=budget.block_size,
        topk=budget.topk,
        max_cached_blocks=budget.max_cached_blocks,
        repr_topk=budget.repr_topk,
        n_repr=budget.n_repr,
        n_score=budget.n_score,
        position="true" if mode == "keys" else mode,  # type: ignore[arg-type]
        search="keys" if mode == "keys" else "queries",
    )


def measure(
    evaluate: Callable[[Sequence[int]], Floats], tokens: Sequence[int], chunk: int, n_greedy: int
) -> Run:
    """Evaluate a text chunk by chunk, then continue it."""
    nll: list[npt.NDArray[np.float64]] = []
    top: list[npt.NDArray[np.int64]] = []
    for i in range(0, len(tokens), chunk):
        logits = evaluate(tokens[i : i + chunk])
        top.append(logits.argmax(axis=-1))
        following = np.asarray(tokens[i + 1 : i + 1 + chunk])
        rows = logits[: len(following)]
        peak = rows.max(axis=-1)
        norm = peak + np.log(np.exp(rows - peak[:, None]).sum(axis=-1, dtype=np.float64))
        nll.append(norm - rows[np.arange(len(following)), following])

    greedy: list[int] = []
    token = int(top[-1][-1])
    while len(greedy) < n_greedy:
        greedy.append(token)
        if len(greedy) < n_greedy:
            token = int(evaluate([token])[-1].argmax())
    return Run(np.concatenate(nll), np.concatenate(top), greedy, {})


def run_ours(model: Path, tokens: Sequence[int], budget: Budget, mode: str, n_greedy: int) -> Run:
    """The C++ path."""
    selected: Selected = {}
    with Llama(
        model,
        n_ctx=len(tokens) + n_greedy,
        n_batch=budget.chunk,
        n_ubatch=budget.chunk,
        n_threads=1,
        infllm=config(budget, mode),
    ) as llm:
        llm.set_trace(lambda e: selected.update({(e.il, e.pos): set(e.selected.tolist())}))
        run = measure(lambda x: llm.eval(x, all_logits=True), tokens, budget.chunk, n_greedy)
    run.selected = selected
    return run


def run_reference(
    model: Model, tokens: Sequence[int], budget: Budget, switches: Switches, n_greedy: int
) -> Run:
    """The NumPy reference."""
    ref = Reference(model, budget, switches, len(tokens) + n_greedy)
    run = measure(ref.eval, tokens, budget.chunk, n_greedy)
    run.selected = {(s.layer, s.pos): set(s.blocks) for s in ref.selections}
    return run


def overlaps(a: Selected, b: Selected) -> dict[int, float]:
    """By layer, the mean share of the blocks in `a` that are in `b` too."""
    shares: dict[int, list[float]] = {}
    for key, blocks in a.items():
        shares.setdefault(key[0], []).append(len(blocks & b[key]) / len(blocks))
    return {il: float(np.mean(x)) for il, x in sorted(shares.items())}


def compare(ours: Run, reference: Run, n_tokens: int, budget: Budget) -> Comparison:
    """Of the text, not of the continuation: there the two soon read different tokens."""
    common = [key for key in ours.selected if key in reference.selected and key[1] < n_tokens]
    layers = overlaps({key: ours.selected[key] for key in common}, reference.selected)
    first = min((pos for _, pos in common), default=0)
    n_blocks = [(pos - budget.n_local - budget.n_init) // budget.block_size for _, pos in common]

    differ = [a != b for a, b in zip(ours.greedy, reference.greedy, strict=False)]
    return Comparison(
        overlap=float(np.mean(list(layers.values()))) if layers else float("nan"),
        chance=float(np.mean([budget.topk / n for n in n_blocks])) if n_blocks else float("nan"),
        layers=layers,
        perplexity_ours=float(np.exp(ours.nll[first:].mean())),
        perplexity_reference=float(np.exp(reference.nll[first:].mean())),
        ratio_all=float(np.exp(ours.nll.mean() - reference.nll.mean())),
        same_top=float(np.mean(ours.top[first:] == reference.top[first:])),
        equal_greedy=differ.index(True) if True in differ else len(differ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, help="a GGUF of the Llama architecture; default: the demo model"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="length of the text (default: %(default)s)")
    parser.add_argument("--greedy", type=int, default=32, help="tokens to generate (default: %(default)s)")
    parser.add_argument(
        "--quantised",
        action="store_true",
        help="give the C++ path the model as it is; default: a temporary copy with float32 weights",
    )
    parser.add_argument(
        "--same-states", action="store_true", help="compare the scoring alone, without the C++ path"
    )
    parser.add_argument("--only", default="", help="variants whose name contains this")
    for name, value in vars(Budget()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=value, help="(default: %(default)s)"
        )
    args = parser.parse_args()

    path = args.model or infllm_cpp.fetch_demo_model()
    with tempfile.TemporaryDirectory() as folder:
        if not args.quantised and not args.same_states:
            copy_gguf(path, Path(folder, "model.gguf"), dequantise=True)
            path = Path(folder, "model.gguf")
        (print_same_states if args.same_states else print_table)(path, args)


def select_again(run: Reference, switches: Switches) -> Selected:
    """What another scoring would have selected, given the queries and keys of a run with softmax sums."""
    selected: Selected = {}
    for il, source in enumerate(run.memory):
        memory = LayerMemory(run.model, run.budget, switches, 0)
        memory.k, memory.q, memory.mass = source.k, source.q, source.mass
        for p0 in range(0, run.n_tokens, run.budget.chunk):
            p1 = min(p0 + run.budget.chunk, run.n_tokens)
            memory.add_blocks(p0)
            if len(memory.reps) > run.budget.topk:
                scores = memory.block_scores(run.model.rotate(source.q[p0:p1], -np.arange(p0, p1)))
                selected[il, p0] = set(best(scores, run.budget.topk).tolist())
    return selected


SCORING: dict[str, Switches] = {
    "published": PUBLISHED,
    "linear scores": replace(PUBLISHED, scores="linear"),
    "linear scores, whole blocks of queries": replace(PUBLISHED, scores="linear", followers="blocks"),
    "per KV head": replace(PUBLISHED, heads="kv"),
    "several representative keys": replace(PUBLISHED, parts="several"),
    "best sub-chunk": replace(PUBLISHED, query="best"),
    "ours": OURS,
}


def print_same_states(path: Path, args: argparse.Namespace) -> None:
    budget = Budget(**{name: getattr(args, name) for name in vars(Budget())})
    with Llama(path, n_ctx=512, infllm=None) as llm:
        tokens = prose(llm, args.tokens)
    model = Model.load(path)
    run = Reference(replace(model, output=model.output[:1]), budget, PUBLISHED, len(tokens))
    run.eval(tokens)

    print(f"{len(tokens)} tokens, {budget}\n")
    print_row("scoring", "overlap with published", "lowest", "with ours", "lowest")
    print_row(*["---"] * 5)
    all_selected = {name: select_again(run, switches) for name, switches in SCORING.items()}
    for name, selected in all_selected.items():
        cells = []
        for other in ("published", "ours"):
            layers = overlaps(selected, all_selected[other])
            lowest = min(layers, key=lambda il: layers[il])
            cells += [f"{np.mean(list(layers.values())):.3f}", f"{layers[lowest]:.3f} (layer {lowest})"]
        print_row(name, *cells)


COLUMNS = [
    "reference",
    "overlap",
    "lowest",
    "perplexity, C++",
    "reference",
    "ratio",
    "whole text",
    "same top",
    "greedy",
]


def print_row(*cells: str) -> None:
    print("|", " | ".join(cells), "|", flush=True)


def print_table(path: Path, args: argparse.Namespace) -> None:
    budget = Budget(**{name: getattr(args, name) for name in vars(Budget())})
    with Llama(path, n_ctx=512, infllm=None) as llm:
        tokens = prose(llm, args.tokens)
    model = Model.load(path)

    print(f"{len(tokens)} tokens, {budget}\n")
    print_row(*COLUMNS)
    print_row(*["---"] * len(COLUMNS))
    ours: dict[str, Run] = {}
    for name, (switches, mode) in VARIANTS.items():
        if args.only not in name:
            continue
        start = time.monotonic()
        if mode not in ours:
            ours[mode] = run_ours(path, tokens, budget, mode, args.greedy)
        middle = time.monotonic()
        reference = run_reference(model, tokens, budget, switches, args.greedy)
        res = compare(ours[mode], reference, len(tokens), budget)
        lowest = min(res.layers, key=lambda il: res.layers[il]) if res.layers else -1
        print_row(
            name,
            f"{res.overlap:.3f}",
            f"{res.layers[lowest]:.3f} (layer {lowest})" if res.layers else "",
            f"{res.perplexity_ours:.3f}",
            f"{res.perplexity_reference:.3f}",
            f"{res.ratio:.4f}",
            f"{res.ratio_all:.4f}",
            f"{res.same_top:.3f}",
            f"{res.equal_greedy} of {args.greedy}",
        )
        print(f"\n{name}: chance {res.chance:.3f}", file=sys.stderr)
        print("by layer:", " ".join(f"{x:.2f}" for x in res.layers.values()), file=sys.stderr)
        print(f"C++ {middle - start:.0f} s, reference {time.monotonic() - middle:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
