"""The one static program: builds it, measures it, and asks it for a pass key in a long text.

    python scripts/small.py
    python scripts/small.py --program build/small/bin/llama -m small.gguf --n-filler 1000

Memory is that of the process without mapped files, so without the weights. The pass key is asked for by
`llama completion`, again from its `--prompt-cache`, and by `llama serve`, whose slot is saved and restored.
Ends with an error where the program is too large or needs a library, starts too slowly, or is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from bench_session import anonymous_bytes
from infllm_cpp import fetch_demo_model
from infllm_cpp.passkey import FILLER, NEEDLE, QUESTION, TASK, is_right
from load_server import free_port

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 12_000_000
MAX_START = 0.050
"""Seconds to an end that needs no model."""
METHOD = "profile=fast"
KEY = "24681"


def build() -> Path:
    for arguments in (["--preset", "small"], ["--build", "--preset", "small", "--parallel"]):
        subprocess.run(["cmake", *arguments], cwd=ROOT, check=True)
    return ROOT / "build/small/bin/llama"


def say(what: str, seconds: float, n_bytes: int, result: str = "") -> None:
    memory = f"{n_bytes / 2**20:.0f} MiB" if n_bytes else ""
    print(f"{what:<36} {seconds:>8.3f} s {memory:>10}  {result}", flush=True)


def start_time(program: Path, *arguments: str) -> float:
    times = []
    for _ in range(15):
        begin = time.perf_counter()
        subprocess.run(
            [program, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
        )
        times.append(time.perf_counter() - begin)
    say(f"llama {' '.join(arguments)}", statistics.median(times), 0)
    return statistics.median(times)


def complete(program: Path, model: str, prompt: Path, n_ctx: int, cache: Path) -> str:
    """The answer to a prompt, whose state is kept in `cache`, or comes from there."""
    command: list[str | Path] = [program, "completion", "-m", model, "-f", prompt, "-c", str(n_ctx)]
    command += ["-n", "8", "--temp", "0"]
    command += ["-no-cnv", "--no-display-prompt", "--no-warmup", "--prompt-cache", cache]
    begin, n_bytes = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as out:
        environment = {**os.environ, "LLAMA_INFLLM": METHOD}
        what = "completion, from --prompt-cache" if cache.exists() else "completion"
        with subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, env=environment) as process:
            while process.poll() is None:
                n_bytes = max(n_bytes, anonymous_bytes(process.pid))
                time.sleep(0.05)
        seconds = time.perf_counter() - begin
        out.seek(0)
        answer = out.read() if process.returncode == 0 else f"exit code {process.returncode}"
    say(what, seconds, n_bytes, repr(answer))
    return answer


def serve(program: Path, model: str, prompt: Path, n_ctx: int, folder: Path) -> list[str]:
    """The answers of a server, before and after its slot was saved, erased and restored."""
    url = f"http://127.0.0.1:{free_port()}"
    command: list[str | Path] = [program, "serve", "-m", model, "-c", str(n_ctx), "--parallel", "1"]
    command += ["--slot-save-path", folder, "--port", url.rpartition(":")[2], "--no-warmup"]
    answers: list[str] = []

    def post(path: str, **body: object) -> dict[str, object]:
        data = json.dumps(body).encode()
        request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=3600) as response:
            return dict(json.load(response))

    environment = {**os.environ, "LLAMA_INFLLM": METHOD}
    begin = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as server:
        try:
            while True:
                assert server.poll() is None, "the server has ended"
                try:
                    urllib.request.urlopen(url + "/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.01)
            say("serve, model loaded", time.perf_counter() - begin, anonymous_bytes(server.pid))
            for what in ("serve", "serve, restored slot"):
                begin = time.perf_counter()
                if answers:
                    post("/slots/0?action=restore", filename="slot")
                got = post("/completion", prompt=prompt.read_text(), n_predict=8, temperature=0, id_slot=0)
                answers.append(str(got["content"]))
                say(what, time.perf_counter() - begin, anonymous_bytes(server.pid), repr(answers[-1]))
                if len(answers) == 1:
                    post("/slots/0?action=save", filename="slot")
                    post("/slots/0?action=erase")
        finally:
            server.terminate()
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, help="one that is built already")
    parser.add_argument("-m", "--model", help="GGUF file; by default the demo model")
    parser.add_argument("--n-filler", type=int, default=400, help="sentences of five, of about 22 tokens")
    parser.add_argument("--n-ctx", type=int, default=0, help="by default enough for the demo model")
    args = parser.parse_args()

    program = (args.program or build()).resolve()
    model = args.model or str(fetch_demo_model())
    n_ctx = args.n_ctx or 512 + 26 * args.n_filler
    wrong = []

    size = program.stat().st_size
    libraries = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    print(f"{program.name}: {size / 1e6:.2f} MB, {(libraries.stdout + libraries.stderr).strip()}")
    if size > MAX_BYTES:
        wrong.append(f"more than {MAX_BYTES} bytes")
    if libraries.returncode == 0:
        wrong.append("needs libraries")

    for arguments in (["version"], ["completion", "--help"], ["serve", "--help"]):
        if start_time(program, *arguments) > MAX_START:
            wrong.append(f"{' '.join(arguments)} takes more than {MAX_START} s")

    with tempfile.TemporaryDirectory() as folder:
        prompt, n_before = Path(folder) / "prompt.txt", args.n_filler // 3
        prompt.write_text(
            TASK + FILLER * n_before + NEEDLE.format(key=KEY) + FILLER * (args.n_filler - n_before) + QUESTION
        )
        cache = Path(folder) / "cache"
        answers = [complete(program, model, prompt, n_ctx, cache) for _ in range(2)]
        answers += serve(program, model, prompt, n_ctx, Path(folder))
        wrong += [f"{answer!r} is not the pass key" for answer in answers if not is_right(answer, KEY)]
    if wrong:
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()
