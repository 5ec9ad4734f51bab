#!/usr/bin/env python3
"""Is what a chat was told found as well as in a text that is read at once?

A text with a pass key, or with a fact in prose, comes in the turns of a chat, and the last turn asks for it.
Every turn is answered, so that blocks are selected for the pieces of the text as they come. Then the same
messages are read at once.

    python scripts/eval_chat.py
    python scripts/eval_chat.py --n-tokens 16384 --chats 10 --turns 8 --tasks passkey
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from infllm_cpp import InfLLMConfig, Llama
from infllm_cpp.evaluation.haystack import Haystack
from infllm_cpp.evaluation.prose import load_prose
from infllm_cpp.evaluation.tasks import fill
from infllm_cpp.models import fetch
from infllm_cpp.types import ChatMessage

N_REPLY = 8  # tokens
N_ANSWER = 24


def pieces(llm: Llama, tokens: list[int], n: int) -> list[str]:
    """A text in `n` pieces of about the same length."""
    ends = [round(i * len(tokens) / n) for i in range(n + 1)]
    parts = [tokens[a:b] for a, b in itertools.pairwise(ends)]
    return [llm.detokenize(part).decode("utf-8", errors="replace") for part in parts]


def ask(llm: Llama, messages: list[ChatMessage], n_tokens: int, begin: str = "") -> str:
    """The answer to a chat, which goes on where `begin` ends."""
    tokens = llm.chat_tokens(messages) + llm.tokenize(begin, add_bos=False)
    return llm.create_completion(tokens, max_tokens=n_tokens, temperature=0)["choices"][0]["text"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", type=Path, help="default: the demo model")
    parser.add_argument("--n-tokens", type=int, default=4096, help="length of the text (default: 4096)")
    parser.add_argument("--chats", type=int, default=10, help="of each task (default: 10)")
    parser.add_argument("--turns", type=int, default=8, help="default: 8")
    parser.add_argument("--tasks", default="passkey,needle")
    parser.add_argument("-t", "--n-threads", type=int, default=None)
    args = parser.parse_args()

    n_ctx = args.n_tokens + args.turns * (N_REPLY + 32) + N_ANSWER
    with Llama(args.model or fetch(), n_ctx=n_ctx, n_threads=args.n_threads, infllm=InfLLMConfig()) as llm:
        haystack = Haystack(llm, load_prose())
        for task in args.tasks.split(","):
            found = {"in turns": 0, "at once": 0}
            n_same = 0
            for i in range(args.chats):
                sample = fill(task, haystack, args.n_tokens, (i + 0.5) / args.chats, seed=i)
                question = sample.questions[0]
                text = llm.detokenize(sample.tokens + question.tokens).decode()
                # the question, and how its answer begins: a small model would answer with something else
                text, mark, begin = text.rpartition("? ")
                texts = pieces(llm, llm.tokenize(text + mark.strip(), add_bos=False), args.turns)

                llm.reset()
                messages: list[ChatMessage] = []
                for piece in texts[:-1]:
                    messages.append({"role": "user", "content": piece})
                    messages.append({"role": "assistant", "content": ask(llm, messages, N_REPLY)})
                messages.append({"role": "user", "content": texts[-1]})
                answers = {"in turns": ask(llm, messages, N_ANSWER, begin)}
                llm.reset()
                answers["at once"] = ask(llm, messages, N_ANSWER, begin)

                for how, answer in answers.items():
                    found[how] += question.answers[0].lower() in answer.lower()
                n_same += answers["in turns"] == answers["at once"]
                print(f"{task} {i}: {question.answers[0]!r}: {answers}", flush=True)
            stats = llm.stats()
            assert stats is not None and stats.n_page_in > 0
            print(
                f"{task}, {args.n_tokens:,} tokens in {args.turns} turns, of {args.chats}: "
                + ", ".join(f"{n} found {how}" for how, n in found.items())
                + f"; {n_same} answers are the same",
                flush=True,
            )


if __name__ == "__main__":
    main()
