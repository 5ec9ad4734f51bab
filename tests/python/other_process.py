"""Uses a Llama in a child process, for test_processes.py.

    python other_process.py MODEL PARENT START

PARENT: what was done before the child started ("imported", "loaded" or "computed"); START: "fork" or "spawn".
"""

from __future__ import annotations

import multiprocessing
import sys

from infllm_cpp import Llama

TOKENS = [504, 3575, 282, 4649, 314]


def use_a_new_one(path: str, queue: multiprocessing.Queue[str]) -> None:
    try:
        with Llama(path, n_ctx=256) as llm:
            llm.eval(TOKENS)
            queue.put(f"{llm.n_tokens} tokens")
    except Exception as err:
        queue.put(f"{type(err).__name__}: {err}")


def main() -> None:
    path, parent, start = sys.argv[1:]
    llm = None if parent == "imported" else Llama(path, n_ctx=256)
    if llm and parent == "computed":
        llm.eval(TOKENS)

    context = multiprocessing.get_context(start)
    queue: multiprocessing.Queue[str] = context.Queue()
    process = context.Process(target=use_a_new_one, args=(path, queue))
    process.start()
    try:
        print(queue.get(timeout=60))
        process.join(60)
    finally:
        process.kill()
    print(process.exitcode)
    # what the child did not make it did not free either
    if llm:
        llm.reset()
        llm.eval(TOKENS)
        print(llm.n_tokens)


if __name__ == "__main__":
    main()
