"""Many clients of `infllm serve` at once: errors, speed, and whether its memory grows.

    python scripts/load_server.py
    python scripts/load_server.py --clients 16 --minutes 5 --parallel 4
    python scripts/load_server.py --minutes 0 --document 30000 --n-ctx 32768

Clients ask one question after the other, with prompts of up to `--n-prompt` words that begin alike or not;
one in eight goes before its answer has come. Memory is that of the process without mapped files. With
`--document` one client first asks five questions about a text of so many words, each by a chat that begins
with it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

from bench_session import anonymous_bytes

WORDS = (
    "the grass is green and sky blue while a small river runs far below our old house on that hill".split()
)


class Load:
    """The clients, and what they have seen."""

    def __init__(self, url: str, n_prompt: int, end: float) -> None:
        self.url, self.n_prompt, self.end = url, n_prompt, end
        self.lock = threading.Lock()
        self.n_answers = self.n_gone = self.n_tokens = 0
        self.errors: list[str] = []

    def ask(self, prompt: str, timeout: float) -> int:
        body = json.dumps({"prompt": prompt, "n_predict": 32, "ignore_eos": True}).encode()
        request = urllib.request.Request(self.url + "/completion", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return int(json.load(response)["tokens_predicted"])

    def run(self, seed: int) -> None:
        rng = random.Random(seed)
        while time.time() < self.end:
            begins = random.Random(rng.randrange(4)) if rng.random() < 0.5 else rng
            prompt = " ".join(begins.choices(WORDS, k=rng.randint(10, self.n_prompt)))
            leaves = rng.random() < 1 / 8
            try:
                n = self.ask(prompt, 0.5 if leaves else 600)
                with self.lock:
                    self.n_answers += 1
                    self.n_tokens += n
            except TimeoutError:
                with self.lock:
                    self.n_gone += leaves
                    self.errors += [] if leaves else ["no answer in ten minutes"]
            except OSError as err:
                with self.lock:
                    self.errors.append(str(err))


def ask_about_document(url: str, n_words: int) -> None:
    """Print what each of five questions about one text took."""
    text = " ".join(random.Random(0).choices(WORDS, k=n_words))
    for question in (
        "Who?",
        "What is green?",
        "Where is the river?",
        "How old is the house?",
        "And the sky?",
    ):
        messages = [{"role": "user", "content": f"{text}\n\n{question}"}]
        body = json.dumps({"messages": messages, "max_tokens": 16, "temperature": 0}).encode()
        request = urllib.request.Request(
            url + "/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        begin = time.time()
        with urllib.request.urlopen(request, timeout=3600) as response:
            usage = json.load(response)["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        print(
            f"{question}: {usage['prompt_tokens']:,} tokens, {cached:,} of them cached, "
            f"{time.time() - begin:.1f} s",
            flush=True,
        )


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", help="GGUF file; by default the demo model")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--n-ctx", type=int, default=16384)
    parser.add_argument("--n-prompt", type=int, default=600, help="words")
    parser.add_argument("--document", type=int, default=0, help="words of a text that is asked about first")
    args = parser.parse_args()

    port = free_port()
    command = [sys.executable, "-m", "infllm_cpp", "serve", "--port", str(port), "--n-ctx", str(args.n_ctx)]
    command += ["--parallel", str(args.parallel), *(["-m", args.model] if args.model else [])]
    command += ["--n-local", "512", "--n-batch", "256", "--topk", "4", "--", "--cache-ram", "256"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
    ) as server:
        url = f"http://127.0.0.1:{port}"
        while True:
            assert server.poll() is None, "the server has ended"
            try:
                urllib.request.urlopen(url + "/health", timeout=5).close()
                break
            except (OSError, urllib.error.URLError):
                time.sleep(0.2)
        if args.document:
            ask_about_document(url, args.document)
        begin = time.time()
        load = Load(url, args.n_prompt, begin + 60 * args.minutes)
        threads = [threading.Thread(target=load.run, args=(i,)) for i in range(args.clients)]
        for thread in threads:
            thread.start()
        grown = []
        while time.time() < load.end:
            time.sleep(min(60.0, max(0.0, load.end - time.time())))
            grown.append(f"{anonymous_bytes(server.pid) / 2**20:.0f}")
        for thread in threads:
            thread.join()
        seconds = time.time() - begin
        server.send_signal(signal.SIGINT)
        code = server.wait(60)
    speed = load.n_tokens / seconds
    print(
        f"{args.clients} clients, {seconds:.0f} s: {load.n_answers} answers, {speed:.1f} tok/s, "
        f"{load.n_gone} clients gone, {len(load.errors)} errors {load.errors[:3] or ''}\n"
        f"memory after each minute, MiB: {', '.join(grown)}; exit code {code}"
    )
    sys.exit(bool(load.errors) or code != 0)


if __name__ == "__main__":
    main()
