"""llama.cpp's own tests of llama-server, with the method and without: what passes without it passes with it.

    python scripts/upstream_server_tests.py --bin build/test/bin
    python scripts/upstream_server_tests.py --bin build/test/bin -k "test_slot_save or test_ctx_shift"

They download their models; here the first layers of the demo model stand for the small Llama that most of
them use, so that tests which know its very words fail either way. `small`: with so little resident that
longer prompts are paged; then answers are others, and so may be what depends on their words. The exit code is
1 if a test passes without the method and not with it, where everything fits. Needs openai, aiohttp, filelock,
prometheus-client, requests and wget.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import outcomes
from infllm_cpp import fetch_demo_model

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "third_party/llama.cpp/tools/server/tests"


def first_layers(path: Path) -> None:
    sys.path.append(str(ROOT / "tests/reference"))
    from gguf_copy import copy_gguf  # type: ignore[import-not-found]

    copy_gguf(fetch_demo_model(), path, n_layer=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="of unit/, default: all")
    parser.add_argument("--bin", type=Path, required=True, help="where llama-server is")
    parser.add_argument("--methods", default="plain,infllm,small")
    parser.add_argument("-k", help="as pytest's")
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--logs", type=Path, help="folder that keeps what the tests print")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model = Path(temporary) / "model.gguf"
        first_layers(model)
        arguments = ["-m", "not slow", *(["-k", args.k] if args.k else []), *args.files]
        env = {
            "LLAMA_SERVER_BIN_PATH": str(args.bin.resolve() / "llama-server"),
            "LLAMA_CACHE": str(folder),
            "INFLLM_SERVER_MODEL": str(model),
            "PORT": str(args.port),
        }
        runs = {}
        for method in args.methods.split(","):
            env["INFLLM_SERVER_UBATCH"] = "64" if method == "small" else "0"  # it must fit the local window
            runs[method] = outcomes.run(method, arguments, "upstream_server_plugin", TESTS, folder, env)
    sys.exit(1 if outcomes.compare(runs) else 0)


if __name__ == "__main__":
    main()
