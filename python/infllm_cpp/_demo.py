"""`infllm demo`: the passkey task, with the method and with plain llama.cpp."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rich.table import Table

from . import _terminal as term
from ._options import RunOptions
from .llama import Llama
from .passkey import QUESTION, is_right, make_passkey_prompt
from .types import Timings

_N_ANSWER = 16  # tokens; the key is five digits


@dataclass
class _Result:
    n_tokens: int
    answer: str
    key: str
    timings: Timings
    bytes_resident: float
    bytes_store: float


def run_demo(options: RunOptions, n_tokens: int, depth: float, seed: int) -> None:
    """Hide a pass key, ask for it, print what came out."""
    out = term.results_console()

    options.refuse_n_ctx("--n-tokens")
    if not options.no_infllm:
        with dataclasses.replace(options, n_ctx=n_tokens + _N_ANSWER).load() as llm:
            n_ctx_train = llm.n_ctx_train()
            out.print(
                f"A pass key is hidden in a text of {n_tokens:,} tokens; "
                f"the model was trained for {n_ctx_train:,}.\n"
            )
            ours = _ask(llm, n_tokens, depth, seed, "InfLLM memory")

    # the same task in a text that plain llama.cpp can hold
    with dataclasses.replace(options, n_ctx=0, no_infllm=True).load() as llm:
        n_ctx_train = llm.n_ctx_train()
        plain = _ask(llm, min(n_tokens, n_ctx_train - _N_ANSWER), depth, seed, "plain llama.cpp")

    table = Table()
    table.add_column("")
    columns = [("plain llama.cpp", plain)]
    if not options.no_infllm:
        columns.insert(0, ("InfLLM memory", ours))
    for name, _ in columns:
        table.add_column(name, justify="right")

    def row(name: str, *values: str) -> None:
        table.add_row(name, *values)

    results = [result for _, result in columns]
    row("text, tokens", *(f"{r.n_tokens:,}" for r in results))
    row("pass key", *(r.key for r in results))
    row("answer", *(f"{r.answer} ({'right' if is_right(r.answer, r.key) else 'wrong'})" for r in results))
    row("prefill, tok/s", *(f"{r.timings['prompt_per_second']:.0f}" for r in results))
    row("decode, tok/s", *(f"{r.timings['predicted_per_second']:.1f}" for r in results))
    row("K and V resident", *(term.format_bytes(r.bytes_resident) for r in results))
    row("K and V in the store", *(term.format_bytes(r.bytes_store) for r in results))
    out.print(table)
    if not options.no_infllm and plain.n_tokens < ours.n_tokens:
        out.print(
            f"Plain llama.cpp was given the same task in a text of {plain.n_tokens:,} tokens: "
            f"beyond its training length the model fails, and longer texts are slower."
        )


def _ask(llm: Llama, n_tokens: int, depth: float, seed: int, name: str) -> _Result:
    tokens, key = make_passkey_prompt(llm.tokenize, n_tokens, depth, seed)
    with term.prefill_progress(f"{name}: reading") as progress:
        completion = llm.create_completion(
            tokens, max_tokens=_N_ANSWER, temperature=0, stop=[".", "\n"], progress=progress.update
        )
    answer = completion["choices"][0]["text"].strip()
    print(f"{name}: {QUESTION} ... {answer}\n")

    stats = llm.stats()
    if stats is None:
        bytes_resident = llm.n_ctx() * llm.kv_bytes_per_token()
    else:
        bytes_resident = stats.bytes_resident
    return _Result(
        n_tokens=len(tokens),
        answer=answer,
        key=key,
        timings=completion["timings"],
        bytes_resident=bytes_resident,
        bytes_store=0 if stats is None else stats.bytes_store,
    )
