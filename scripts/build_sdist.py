"""Build the source distribution twice, and see that both are the same file, byte for byte.

    python scripts/build_sdist.py [OUT]

It has the patched llama.cpp inside, and is written into ``OUT`` (default: dist). Files have the time
``SOURCE_DATE_EPOCH``, by default that of the last commit. Needs the package build, and Git for the default.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build(out: Path, env: dict[str, str]) -> Path:
    """The one source distribution that a build writes."""
    # CMake has a folder of its own: with SOURCE_DATE_EPOCH ggml is not built for this machine, and a cache
    # would keep that
    command = [sys.executable, "-m", "build", "--sdist", "-C", f"build-dir={out / 'cmake'}"]
    command += ["--outdir", str(out), str(ROOT)]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(result.stdout + result.stderr)
    (sdist,) = out.glob("*.tar.gz")
    return sdist


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the source distribution, twice.")
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "dist")
    args = parser.parse_args()
    env = dict(os.environ)
    if "SOURCE_DATE_EPOCH" not in env:
        command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
        env["SOURCE_DATE_EPOCH"] = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        sdists = [build(Path(folder), env) for folder in (first, second)]
        digests = [hashlib.sha256(sdist.read_bytes()).hexdigest() for sdist in sdists]
        if digests[0] != digests[1]:
            sys.exit(f"{sdists[0].name} differs from build to build: SHA-256 {digests[0]} and {digests[1]}")
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / sdists[0].name).write_bytes(sdists[0].read_bytes())
    print(f"{digests[0]}  {args.out / sdists[0].name}")


if __name__ == "__main__":
    main()
