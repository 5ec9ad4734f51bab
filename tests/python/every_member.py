"""Uses every public member of a Llama in one situation, and prints what came of each, as JSON.

    python every_member.py MODEL SITUATION

Run in a process of its own: a member that hangs ends it, with the place in the traceback.
"""

from __future__ import annotations

import copy
import faulthandler
import inspect
import json
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from infllm_cpp import InfLLMConfig, Llama

TIMEOUT = 60  # seconds

# what members are called with, by the names of the parameters that have no default
ARGUMENTS: dict[str, Any] = {
    "callback": None,
    "input": "Hi",
    "messages": [{"role": "user", "content": "Hi"}],
    "n_tokens": 0,
    "path": os.path.join(tempfile.mkdtemp(), "a.session"),
    "prompt": "Hi",
    "text": "Hi",
    "tokens": [1, 2],
}

SMALL = InfLLMConfig(n_init=16, n_local=128, block_size=16, topk=4, n_score=16)


def call(llm: Llama, name: str, stream: bool = False) -> object:
    attribute = getattr(Llama, name)
    if isinstance(attribute, property):
        return getattr(llm, name)
    arguments: dict[str, Any] = {}
    for parameter in list(inspect.signature(attribute).parameters.values())[1:]:
        if parameter.name == "max_tokens":
            arguments["max_tokens"] = 2
        elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
            arguments[parameter.name] = ARGUMENTS[parameter.name]
    if stream:
        return list(attribute(llm, stream=True, **arguments))
    return attribute(llm, **arguments)


def uses(llm: Llama) -> dict[str, Callable[[], object]]:
    """All that a user can do with `llm`, in a new order every time but closing, which comes last."""
    names = [name for name in dir(Llama) if not name.startswith("_") or name in ("__call__", "__enter__")]
    names = [
        name for name in names if not inspect.ismethod(getattr(Llama, name))
    ]  # of the class, not of an object
    result: dict[str, Callable[[], object]] = {
        "copy": lambda: copy.copy(llm),
        "deepcopy": lambda: copy.deepcopy(llm),
        "pickle": lambda: pickle.dumps(llm),
    }
    for name in names:
        result[name] = lambda name=name: call(llm, name)  # type: ignore[misc]
        attribute = getattr(Llama, name)
        if callable(attribute) and "stream" in inspect.signature(attribute).parameters:
            result[name + "(stream=True)"] = lambda name=name: call(llm, name, stream=True)  # type: ignore[misc]
    for name in ("close", "__exit__"):
        result.pop(name, None)
        result[name] = llm.close if name == "close" else lambda: llm.__exit__(None, None, None)
    return result


def outcomes(llm: Llama) -> dict[str, str]:
    result = {}
    for name, use in uses(llm).items():
        try:
            use()
            result[name] = "works"
        except Exception as err:
            result[name] = f"{type(err).__name__}: {err}"
    return result


def eval_until_stopped(llm: Llama, tokens: list[int], **callbacks: Any) -> None:
    try:
        llm.eval(tokens, **callbacks)
    except InterruptedError:
        pass  # interrupt() is among the members


def in_progress_callback(llm: Llama, tokens: list[int]) -> dict[str, str]:
    result: dict[str, str] = {}
    eval_until_stopped(llm, tokens, progress=lambda *_: result or result.update(outcomes(llm)))
    return result


def in_trace_callback(llm: Llama, tokens: list[int]) -> dict[str, str]:
    result: dict[str, str] = {}
    llm.set_trace(lambda _: result or result.update(outcomes(llm)))
    eval_until_stopped(llm, tokens)
    llm.set_trace(None)
    return result


def in_signal_handler(llm: Llama, tokens: list[int]) -> dict[str, str]:
    result: dict[str, str] = {}
    signal.signal(signal.SIGALRM, lambda *_: result.update(outcomes(llm)))
    signal.setitimer(signal.ITIMER_REAL, 0.15)
    while not result:
        llm.reset()
        eval_until_stopped(llm, tokens)
    return result


def in_another_thread(llm: Llama, tokens: list[int]) -> dict[str, str]:
    result: dict[str, str] = {}
    thread = threading.Thread(target=lambda: result.update(outcomes(llm)))
    thread.start()
    while thread.is_alive():
        try:
            llm.reset()
            eval_until_stopped(llm, tokens[:64])
        except RuntimeError:
            thread.join()  # closed
    return result


def after_close(llm: Llama, tokens: list[int]) -> dict[str, str]:
    llm.eval(tokens)
    llm.close()
    return outcomes(llm)


def after_fork(llm: Llama, tokens: list[int]) -> dict[str, str]:
    """Forked while another thread computes, so that its lock and its threads are gone in the child."""
    thread = threading.Thread(target=llm.eval, args=(tokens,))
    thread.start()
    time.sleep(0.1)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(TIMEOUT)  # a fork takes the thread that watches over the parent
        with os.fdopen(write_end, "w") as file:
            json.dump(outcomes(llm), file)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as file:
        result: dict[str, str] = json.loads(file.read() or "{}")
    os.waitpid(pid, 0)
    thread.join()
    return result


SITUATIONS = {
    f.__name__: f
    for f in (
        in_progress_callback,
        in_trace_callback,
        in_signal_handler,
        in_another_thread,
        after_close,
        after_fork,
    )
}


def main() -> None:
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)
    model, situation = sys.argv[1:]
    llm = Llama(model, n_ctx=512, n_ubatch=128, infllm=SMALL)
    llm.save_session(ARGUMENTS["path"])
    ARGUMENTS["state"] = llm.save_state()
    tokens = (llm.tokenize("The grass is green. ") * 100)[:512]
    result = SITUATIONS[situation](llm, tokens)
    lives_on = True
    try:
        llm.reset()
        lives_on = llm("Hi", max_tokens=2)["usage"]["completion_tokens"] == 2
    except RuntimeError as err:
        lives_on = "closed" in str(err) and situation in ("in_another_thread", "after_close")
    print(json.dumps({"outcomes": result, "lives_on": lives_on}))


if __name__ == "__main__":
    main()
