"""Try an installed package: version, licences, library, command line and server, with the demo model.

    python scripts/check_installed.py [N_PASSKEY] [--variants]

For wheels: cibuildwheel runs it after each build, scripts/check_wheel.sh in a system without compilers. It
needs nothing but the package, takes a minute, and ends with exit code 1 where something is wrong. N_PASSKEY,
by default 2,048, is the length in tokens of the text in which a number is found; 544 are resident.
With --variants also by each variant of the CPU's code that this processor can run, instead of the best alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from socket import socket
from typing import Any

import infllm_cpp
from infllm_cpp import InfLLMConfig, Llama
from infllm_cpp.passkey import is_right, make_passkey_prompt

SMALL = InfLLMConfig(n_init=32, n_local=256, block_size=32, topk=8, max_cached_blocks=8)


def infllm(*arguments: str, stdin: str = "") -> str:
    """What the command line prints."""
    command = [sys.executable, "-m", "infllm_cpp", *arguments]
    return subprocess.run(command, input=stdin, stdout=subprocess.PIPE, text=True, check=True).stdout


def check_version() -> str:
    """Those of the metadata, the package and the command line are one."""
    version = distribution("infllm-cpp").version
    assert infllm_cpp.__version__ == version, f"__version__ is {infllm_cpp.__version__}, not {version}"
    assert infllm("--version").split() == ["infllm-cpp", version]
    return version


def check_licences() -> str:
    """The wheel has the licences of what it is made of, and a list of that."""
    names = {file.name for file in distribution("infllm-cpp").files or [] if ".dist-info" in str(file)}
    assert names >= {"LICENSE", "llama.cpp.txt", "xxHash.txt", "pybind11.txt", "infllm-cpp.cdx.json"}, names
    return f"{sum(name.endswith('.txt') for name in names)} of others"


def check_cpu() -> str:
    """A CPU backend has been found."""
    info = infllm_cpp._core.system_info()
    assert "CPU" in info, f"no CPU backend in {infllm_cpp.library_dir()}: {info}"
    return info


def check_passkey(model: Path, n_passkey: int) -> str:
    """A number is found in a text that is longer than what is resident."""
    with Llama(model, n_ctx=n_passkey + 64, infllm=SMALL) as llm:
        tokens, key = make_passkey_prompt(llm.tokenize, n_passkey)
        answer = llm(tokens, max_tokens=8, temperature=0)["choices"][0]["text"]
        assert is_right(answer, key), f"{answer!r} instead of {key}"
        stats = llm.stats()
        assert stats is not None and stats.bytes_store > 0, "nothing was stored"
        return f"{key} in {len(tokens)} tokens"


def check_variants(model: Path, n_passkey: int) -> str:
    """Each variant finds the number, too, in a copy of the package that has no other."""
    package = infllm_cpp.library_dir().parent
    code = f"""from check_installed import *
print(check_cpu())
print(check_passkey({str(model)!r}, {n_passkey}))"""
    ran, others = [], []
    for variant in sorted(infllm_cpp.library_dir().glob("*ggml-cpu-*")):
        with tempfile.TemporaryDirectory() as copy:
            for folder in package, package.with_name(package.name + ".libs"):  # auditwheel's
                if folder.exists():
                    shutil.copytree(folder, Path(copy, folder.name))
            for other in Path(copy, package.name, "lib").glob("*ggml-cpu-*"):
                if other.name != variant.name:
                    other.unlink()
            environ = {**os.environ, "PYTHONPATH": os.pathsep.join([copy, str(Path(__file__).parent)])}
            child = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
        name = variant.stem.partition("ggml-cpu-")[2]
        if "no CPU backend" in child.stderr:
            others.append(name)
            continue
        assert child.returncode == 0, f"{name}: {child.stderr}"
        ran.append(name)
        print(f"  {name}: {' '.join(child.stdout.split())}", flush=True)
    return f"{len(ran)} ran; not for this processor: {', '.join(others) or 'none'}"


def check_chat(model: Path) -> str:
    """`infllm chat` answers what comes from a pipe."""
    answer = infllm("chat", "-m", str(model), "-n", "16", "--temperature", "0", stdin="What is 2 + 2?\n")
    assert answer.strip(), "no answer"
    return " ".join(answer.split())


def check_server(model: Path) -> str:
    """llama-server, a process of its own, finds the backends and answers."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "infllm_cpp", "serve", "-m", str(model), "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--n-ctx", "16384"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not _answers(f"{url}/health"):
            assert server.poll() is None, f"the server ended with exit code {server.returncode}"
            time.sleep(0.2)
        body = json.dumps({"prompt": "The capital of France is", "n_predict": 4, "temperature": 0}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{url}/completion", body), timeout=600) as reply:
            content: str = json.load(reply)["content"]
        assert "Paris" in content, content
        return content.strip()
    finally:
        server.terminate()
        server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=60):
            return True
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("n_passkey", metavar="N_PASSKEY", nargs="?", type=int, default=2048, help="tokens")
    parser.add_argument("--variants", action="store_true", help="each variant of the CPU's code")
    arguments = parser.parse_args()
    model = Path(infllm("fetch").strip())
    checks: list[tuple[Callable[..., str], tuple[Any, ...]]] = [
        (check_version, ()), (check_licences, ()), (check_cpu, ()),
        (check_passkey, (model, arguments.n_passkey)), (check_chat, (model,)), (check_server, (model,)),
    ]  # fmt: skip
    if arguments.variants:
        checks.append((check_variants, (model, arguments.n_passkey)))
    for check, of in checks:
        print(f"{check.__name__}: {check(*of)}", flush=True)


if __name__ == "__main__":
    main()
