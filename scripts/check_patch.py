"""Check that csrc/patches applies to several releases of llama.cpp, and report the size of the patch.

    python scripts/check_patch.py                        downloads the releases by pip
    python scripts/check_patch.py --sdist-dir FOLDER     takes the source distributions from a folder
    python scripts/check_patch.py 0.3.36                 only this release of llama-cpp-python
    python scripts/check_patch.py --latest               the newest release there is, pinned or not

The exit code is 1 if the patch does not apply somewhere.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import fetch_llama_cpp
import unified_patch

LATEST = "latest"


def get_sdist(version: str, folder: Path, sdist_dir: Path | None) -> Path:
    """The source distribution of a release, downloaded into the folder unless `sdist_dir` has it."""
    if version == LATEST:
        return fetch_llama_cpp.pip_download("llama-cpp-python", folder)
    if not sdist_dir:
        return fetch_llama_cpp.download(version, folder)
    sdist = sdist_dir / f"llama_cpp_python-{version}.tar.gz"
    fetch_llama_cpp.check_sha256(sdist, version)
    return sdist


def check(sdist: Path, version: str, patches: list[unified_patch.FilePatch]) -> str:
    """Say how the patches apply to one release; raise PatchError if they do not."""
    wanted = {patch.path for patch in patches}
    files = fetch_llama_cpp.read_sdist(sdist, version)
    texts = {path: content.decode() for path, content in files if path in wanted}
    offsets: list[int] = []
    for patch in patches:
        if patch.path not in texts:
            raise unified_patch.PatchError(f"the release has no file {patch.path}")
        texts[patch.path], moved = unified_patch.apply(texts[patch.path], patch)
        offsets += moved
    n_moved = sum(offset != 0 for offset in offsets)
    if n_moved == 0:
        return f"all {len(offsets)} hunks in place"
    return f"{n_moved} of {len(offsets)} hunks moved, by {max(map(abs, offsets))} lines at most"


def main() -> None:
    parser = argparse.ArgumentParser(description="Check that csrc/patches applies to releases of llama.cpp.")
    parser.add_argument("releases", nargs="*", help="releases of llama-cpp-python; default: all pinned ones")
    parser.add_argument("--sdist-dir", type=Path, help="folder with source distributions, not a download")
    parser.add_argument("--latest", action="store_true", help="the newest release, whatever its SHA-256 is")
    args = parser.parse_args()
    releases = [LATEST] if args.latest else args.releases or list(fetch_llama_cpp.SHA256)
    for version in args.releases:
        if version not in fetch_llama_cpp.SHA256:
            sys.exit(f"Release {version} has no SHA-256 in scripts/fetch_llama_cpp.py: add it there first.")

    ok = True
    try:
        files = sorted(fetch_llama_cpp.PATCH_DIR.glob("*.patch"))
        patches = [patch for file in files for patch in unified_patch.parse(file.read_text())]
        print(f"{'release':10}{'applies':10}how")
        for release in releases:
            with tempfile.TemporaryDirectory() as folder:
                sdist = get_sdist(release, Path(folder), args.sdist_dir)
                version = sdist.name.removeprefix("llama_cpp_python-").removesuffix(".tar.gz")
                try:
                    print(f"{version:10}{'yes':10}{check(sdist, version, patches)}")
                except unified_patch.PatchError as error:
                    ok = False
                    print(f"{version:10}{'no':10}{error}")
    except (fetch_llama_cpp.FetchError, unified_patch.PatchError, OSError) as error:
        sys.exit(str(error))

    print(f"\n{'upstream file':30}{'added':>8}{'removed':>9}")
    for patch in patches:
        print(f"{patch.path:30}{patch.n_added:8}{patch.n_removed:9}")
    print(f"{'total':30}{sum(p.n_added for p in patches):8}{sum(p.n_removed for p in patches):9}")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
