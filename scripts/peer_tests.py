"""llama-cpp-python's own tests on our library, with the method and without.

    python scripts/peer_tests.py

The tests are those of the pinned source distribution, as they are; the demo model, and a hybrid one of random
weights, stand for the models that they download, so that what knows their words fails either way. The exit
code is 1 if a test passes without the method and not with it. Needs llama-cpp-python, installed without
libraries of its own, scipy and huggingface-hub.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import fetch_llama_cpp
import outcomes
from infllm_cpp import fetch_demo_model, library_dir

SCRIPTS = Path(__file__).resolve().parent
WANTED = ("/tests/", "/vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf")


def unpack(sdist: Path, folder: Path) -> Path:
    """The tests and the vocabulary that they read; returns the folder to run them in."""
    root = f"llama_cpp_python-{fetch_llama_cpp.VERSION}"
    with tarfile.open(sdist) as tar:
        for member in tar:
            if member.isfile() and member.name.startswith((root + WANTED[0], root + WANTED[1])):
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None
                target.write_bytes(content.read())
    return folder / root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="plain,infllm,small")
    parser.add_argument("--logs", type=Path, help="folder that keeps what the tests print")
    parser.add_argument("-k", help="as pytest's")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        logs = args.logs or Path(temporary)
        logs.mkdir(parents=True, exist_ok=True)
        folder = unpack(fetch_llama_cpp.download(fetch_llama_cpp.VERSION, Path(temporary)), Path(temporary))
        make_hybrid = [
            sys.executable,
            str(SCRIPTS / "make_gguf.py"),
            "small-hybrid",
            str(folder / "hybrid.gguf"),
        ]
        subprocess.run(make_hybrid, check=True, stdout=subprocess.DEVNULL)
        env = {
            "LLAMA_CPP_LIB_PATH": str(library_dir()),
            "INFLLM_PEER_MODEL": str(fetch_demo_model()),
            "INFLLM_PEER_HYBRID": str(folder / "hybrid.gguf"),
        }
        arguments = ["tests", *(["-k", args.k] if args.k else [])]
        runs = {
            method: outcomes.run(method, arguments, "peer_plugin", folder, logs, env)
            for method in args.methods.split(",")
        }
    sys.exit(1 if outcomes.compare(runs) else 0)


if __name__ == "__main__":
    main()
