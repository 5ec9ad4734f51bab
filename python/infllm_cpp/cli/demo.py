"""`infllm demo`: the passkey task, with the method and with plain llama.cpp."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table

from .._format import format_bytes
from .._loading import load_model
from ..llama import Llama
from ..passkey import QUESTION, is_right, make_passkey_prompt
from ..types import Timings
from . import terminal as term
from .options import RunOptions

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
    results: dict[str, _Result] = {}
    if not options.no_infllm:
        with dataclasses.replace(options, n_ctx=n_tokens + _N_ANSWER).load() as llm:
            out.print(
                f"A pass key is hidden in a text of {n_tokens:,} tokens; "
                f"the model was trained for {llm.n_ctx_train():,}.\n"
            )
            results["InfLLM memory"] = _ask(llm, n_tokens, depth, seed, "InfLLM memory")
            n_ctx_train = llm.n_ctx_train()
    else:
        n_ctx_train = load_model(options.path(), no_alloc=True).n_ctx_train()

    # the same task in a text that plain llama.cpp can hold, and in one twice as long as it was trained for:
    # a quarter beyond the training length the demo model still answers
    n_within, n_beyond = n_ctx_train // 2, n_ctx_train * 2
    lengths = {"plain llama.cpp": min(n_tokens, n_within)}
    if n_tokens > n_ctx_train:
        lengths["plain llama.cpp, beyond training"] = min(n_tokens, n_beyond)
    for name, length in lengths.items():
        with dataclasses.replace(options, n_ctx=length + _N_ANSWER, no_infllm=True).load() as llm:
            results[name] = _ask(llm, length, depth, seed, name)

    out.print(_table(results))
    beyond = results.get("plain llama.cpp, beyond training")
    if beyond and not is_right(beyond.answer, beyond.key):
        out.print(
            "Plain llama.cpp fails beyond the training length, here in a text of "
            f"{beyond.n_tokens:,} tokens; a longer one would only take longer to read."
        )


def _table(results: dict[str, _Result]) -> Table:
    table = Table()
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")

    def row(name: str, value: Callable[[_Result], str]) -> None:
        table.add_row(name, *(value(result) for result in results.values()))

    row("text, tokens", lambda r: f"{r.n_tokens:,}")
    row("pass key", lambda r: r.key)
    row("answer", lambda r: f"{r.answer} ({'right' if is_right(r.answer, r.key) else 'wrong'})")
    row("prefill, tok/s", lambda r: f"{r.timings['prompt_per_second']:.0f}")
    row("decode, tok/s", lambda r: f"{r.timings['predicted_per_second']:.1f}")
    row("K and V resident", lambda r: format_bytes(r.bytes_resident))
    row("K and V in the store", lambda r: format_bytes(r.bytes_store))
    return table


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
