"""Ctrl-C and interrupt() stop a computation, on any device; the object can be used on."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import SMALL, interrupt
from infllm_cpp import InfLLMConfig, Llama
from rpc import Server, needs_server

# one decode of the whole text: nothing but the abort callback can end it early
SCRIPT = """
import sys
from infllm_cpp import InfLLMConfig, Llama

infllm = InfLLMConfig() if sys.argv[2] == "on" else None
llm = Llama(sys.argv[1], n_ctx=8192, n_batch=8192, n_ubatch=256, infllm=infllm)
tokens = (llm.tokenize("The grass is green. ") * 2000)[:8000]
print("computing", flush=True)
try:
    llm.eval(tokens)
    print("not interrupted")
except KeyboardInterrupt:
    print(llm.n_tokens, llm.tokens == tokens[:llm.n_tokens])
completion = llm("The capital of France is", max_tokens=4, temperature=0)
print(repr(completion["choices"][0]["text"]))
"""


@pytest.mark.parametrize("method", ["on", "off"])
def test_ctrl_c_stops_a_long_prefill(model_path: Path, method: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(model_path), method],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "computing\n"
    time.sleep(1)  # into the computation
    interrupt(process)
    out, err = process.communicate(timeout=120)

    assert err == ""
    n_tokens, is_prefix = out.splitlines()[0].split()
    assert int(n_tokens) < 8000
    assert is_prefix == "True"
    assert out.splitlines()[1].startswith("' Paris")


def test_interrupt_from_another_thread(llm: Llama) -> None:
    tokens = (llm.tokenize("The grass is green. ") * 300)[:1000]
    started = threading.Event()

    def stop() -> None:
        started.wait()
        llm.interrupt()

    def progress(done: int, total: int) -> None:
        started.set()
        thread.join()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(InterruptedError):
        llm.eval(tokens, progress=progress)
    # the first batch was done when it was interrupted
    assert llm.tokens == tokens[:128]
    llm.eval(tokens[128:256])
    assert llm.n_tokens == 256


def test_a_late_interrupt_does_not_stop_the_next_call(llm: Llama) -> None:
    llm.interrupt()
    assert llm("The capital of France is", max_tokens=2, temperature=0)["choices"][0]["text"].startswith(
        " Paris"
    )


def test_an_interrupt_in_the_last_callback_is_reported(llm: Llama) -> None:
    tokens = llm.tokenize("The capital of France is")
    with pytest.raises(InterruptedError, match="what was computed before is stored"):
        llm.eval(tokens, progress=lambda *_: llm.interrupt())
    assert llm.tokens == tokens
    with pytest.raises(InterruptedError):
        llm(tokens, max_tokens=1, progress=lambda *_: llm.interrupt())
    # once, and not by the next call
    assert llm(tokens, max_tokens=1, temperature=0)["choices"][0]["text"] == " Paris"


def test_a_stream_is_interrupted_between_its_pieces(llm: Llama) -> None:
    stream = llm("The capital of France is", max_tokens=8, stream=True)
    next(stream)
    llm.interrupt()
    with pytest.raises(InterruptedError):
        next(stream)


@pytest.fixture
def alarm() -> Iterator[Callable[[float, Callable[[], None]], None]]:
    """Call a function from a signal handler, after some seconds."""

    def start(seconds: float, handler: Callable[[], None]) -> None:
        signal.signal(signal.SIGALRM, lambda *_: handler())
        signal.setitimer(signal.ITIMER_REAL, seconds)

    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def timed(llm: Llama, tokens: list[int]) -> float:
    """Seconds that they take to be read."""
    llm.reset()
    t_start = time.perf_counter()
    llm.eval(tokens)
    return time.perf_counter() - t_start


Alarm = Callable[[float, Callable[[], None]], None]


@pytest.mark.parametrize("infllm", [SMALL, None])
@pytest.mark.parametrize("n_batch", [1536, 128])
def test_whole_ubatches_are_kept(
    first_layers_path: Path, alarm: Alarm, infllm: InfLLMConfig | None, n_batch: int
) -> None:
    with Llama(first_layers_path, n_ctx=1536, n_batch=n_batch, n_ubatch=128, infllm=infllm) as llm:
        tokens = (llm.tokenize("The grass is green. ") * 400)[:1536]
        n_begun = n_batches = 0

        def stop() -> None:
            nonlocal n_begun
            n_begun = llm._ctx.n_past()  # with the ubatch that is being computed
            raise KeyboardInterrupt

        def progress(n_done: int, n_total: int) -> None:
            nonlocal n_batches
            n_batches = n_done

        timed(llm, tokens[:256])
        alarm(2 * timed(llm, tokens[:256]), stop)
        llm.reset()
        with pytest.raises(KeyboardInterrupt):
            llm.eval(tokens, progress=progress)
        assert 128 < n_begun < len(tokens)
        assert n_begun - 128 <= llm.n_tokens <= n_begun
        assert llm.n_tokens % 128 == 0
        assert llm.n_tokens >= n_batches
        assert llm.tokens == tokens[: llm.n_tokens]


@needs_server
@pytest.mark.parametrize("infllm", [InfLLMConfig(), None])
def test_a_device_that_cannot_be_stopped(
    tmp_path: Path, first_layers_path: Path, alarm: Alarm, infllm: InfLLMConfig | None
) -> None:
    """It computes the one batch to its end, which is kept; the interrupt is reported then, and once."""

    def raise_it() -> None:
        raise KeyboardInterrupt

    server = Server(tmp_path / "server.log")
    try:
        with Llama(first_layers_path, n_ctx=512, infllm=infllm, rpc_servers=[server.address]) as llm:
            tokens = (llm.tokenize("The grass is green. ") * 100)[:256]
            seconds = min(timed(llm, tokens), timed(llm, tokens))

            for stop, error in ((llm.interrupt, InterruptedError), (raise_it, KeyboardInterrupt)):
                for use in (llm.eval, lambda tokens: llm(tokens, max_tokens=1)):
                    llm.reset()
                    alarm(seconds / 3, stop)
                    with pytest.raises(error):
                        use(tokens)
                    assert llm.tokens == tokens
            assert llm(tokens, max_tokens=1)["usage"]["completion_tokens"] == 1
    finally:
        server.stop()


def test_signals_at_any_place(llm: Llama, alarm: Alarm) -> None:
    """A handler that computes works or is refused, wherever it runs: it never waits for its own thread."""
    outcomes = []

    def handler() -> None:
        try:
            llm.reset()
            outcomes.append("reset")
        except RuntimeError as err:
            assert "a callback or a signal handler" in str(err)
            outcomes.append("refused")
        signal.setitimer(signal.ITIMER_REAL, 0.0007)

    alarm(0.001, handler)
    while len(outcomes) < 500:
        llm.reset()
        llm.reset_stats()
        llm.set_trace(None)
    assert set(outcomes) == {"reset", "refused"}
