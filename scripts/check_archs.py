"""Which architectures can have the InfLLM memory: run the small model of each that upstream's tests can make.

    python scripts/check_archs.py                   builds the test in build/archs, runs it, prints the table
    python scripts/check_archs.py --bin-dir BIN     takes the programs of a build that is there

Every model is read with llama.cpp's own memory and with ours. While all tokens fit, graphs and logits must be
the same, bit for bit; beyond, logits must be finite, tails removed and read again give the same, and so does
the pager of devices (tests/cpp/test-llama-architectures.cpp).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = "test-llama-architectures"
OPTIONS = ["CMAKE_BUILD_TYPE=Release", "INFLLM_BUILD_TESTS=ON", "LLAMA_BUILD_COMMON=ON"]


def build() -> Path:
    """Build the test; where the programs are."""
    folder = ROOT / "build" / "archs"
    commands: list[list[str | Path]] = [
        ["cmake", "-S", ROOT, "-B", folder, *(f"-D{option}" for option in OPTIONS)],
        ["cmake", "--build", folder, "--target", PROGRAM, "--parallel"],
    ]
    for command in commands:
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder / "bin"


def parse(output: str) -> dict[str, str]:
    """What became of each model: "method", "refused: why", or "FAILED"."""
    res: dict[str, str] = {}
    why = ""
    for line in output.splitlines():
        if match := re.match(r"refused: .*?\": (.*)$", line):
            why = match[1]
        elif match := re.match(r"\[ +(OK|FAILED) +\] All/LlamaArch\.\w+/(\w+)", line):
            failed = match[1] == "FAILED"
            res.setdefault(match[2], "FAILED" if failed else f"refused: {why}" if why else "method")
            why = ""
    return res


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bin-dir", type=Path, help=f"folder with {PROGRAM}; default: build it")
    args = parser.parse_args()

    program = (args.bin_dir or build()) / PROGRAM
    if not program.exists():
        sys.exit(f"{program} does not exist: build the tests, or leave --bin-dir out")
    run = subprocess.run([program], capture_output=True, text=True, check=False)
    models = parse(run.stdout)
    if not models:
        sys.exit(f"{PROGRAM} ran no test:\n{run.stderr}")

    width = max(map(len, models))
    print(f"{'model':<{width}}  what it runs with")
    for name, what in sorted(models.items()):
        print(f"{name:<{width}}  {what}")
    n_method = sum(what == "method" for what in models.values())
    n_refused = sum(what.startswith("refused") for what in models.values())
    print(f"\n{n_method} of {len(models)} models run with the method, {n_refused} are refused", end="")
    print(f", {len(models) - n_method - n_refused} failed" if run.returncode else "")
    sys.exit(run.returncode)


if __name__ == "__main__":
    main()
