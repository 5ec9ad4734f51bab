"""Put the pinned llama.cpp tree in place and patch it; CMake runs this at every configure.

    python scripts/fetch_llama_cpp.py TREE                  download once, then only keep the patch current
    python scripts/fetch_llama_cpp.py --sdist FILE TREE     the same, from a source distribution at hand
    python scripts/fetch_llama_cpp.py --from CHECKOUT TREE  TREE becomes a patched copy of a checkout

The tree is the ``vendor/llama.cpp`` of a ``llama-cpp-python`` source distribution. ``TREE/.infllm`` holds
where it came from and the files as upstream has them, so a changed patch is applied without a download, and
only files whose content changes are written: builds stay incremental. All errors are one sentence.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import unified_patch

VERSION = "0.3.36"
SHA256 = {
    "0.3.34": "d849d286d808284f1d3ec1bd6875572430d29d1f9574a010232caa4e9cef0e35",
    "0.3.35": "1139dbb54509074b70893fab8554e3b079aa9f4d312058ce4018ef0019e3de12",
    "0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
}
PATCH_DIR = Path(__file__).resolve().parent.parent / "csrc" / "patches"

# what the build and our tests read, 40 MB of 176; the rest is other tests, media, vocabularies, web pages
KEEP = (
    "AUTHORS",
    "CMakeLists.txt",
    "CONTRIBUTING.md",
    "LICENSE",
    "app/",
    "cmake/",
    "common/",
    "ggml/",
    "include/",
    "licenses/",
    "models/templates/",
    "scripts/ui-assets.cmake",
    "src/",
    "tests/test-llama-archs.cpp",
    "tests/test-save-load-state.cpp",
    "tests/test-state-restore-fragmented.cpp",
    "tools/batched-bench/",
    "tools/cli/",
    "tools/completion/",
    "tools/fit-params/",
    "tools/llama-bench/",
    "tools/mtmd/",
    "tools/perplexity/",
    "tools/quantize/",
    "tools/rpc/",
    "tools/server/",
    "tools/ui/CMakeLists.txt",
    "tools/ui/sources.cmake",
    "tools/ui/ui.cpp.in",
    "tools/ui/ui.h.in",
    "vendor/",
)


class FetchError(Exception):
    """One sentence: what failed and what to do."""


def check_sha256(sdist: Path, version: str) -> None:
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if found != SHA256[version]:
        raise wrong_hash(version, found)


def wrong_hash(version: str, found: str) -> FetchError:
    return FetchError(
        f"The source distribution of llama-cpp-python {version} has SHA-256 {found}, "
        f"expected {SHA256[version]}: it was altered or damaged, so nothing was unpacked; "
        "remove it from pip's cache or index and try again."
    )


def download(version: str, folder: Path) -> Path:
    """Download one source distribution by pip into the folder."""
    # pip checks the hash before it runs anything out of the distribution
    sdist = pip_download(f"llama-cpp-python=={version} --hash=sha256:{SHA256[version]}", folder)
    check_sha256(sdist, version)
    return sdist


def pip_download(requirement: str, folder: Path) -> Path:
    """Download the source distribution that pip chooses for a requirement on llama-cpp-python."""
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"{sys.executable} has no pip to download llama.cpp with: run `{sys.executable} -m ensurepip`."
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--no-deps", "--no-binary", "llama-cpp-python"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    if importlib.util.find_spec("scikit_build_core"):
        # pip asks the distribution's build backend for its name; in a build of ours it is installed already
        command += ["--no-build-isolation"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        output = result.stdout + result.stderr
        name = requirement.split(" ")[0]
        if match := re.search(r"\bGot\s+([0-9a-f]{64})", output):
            raise wrong_hash(name.rpartition("=")[2], match[1])
        lines = output.splitlines() or [f"exit code {result.returncode}"]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1]).removeprefix("ERROR: ")
        raise FetchError(
            f"pip could not download {name} ({reason}): "
            "check the network, or give a llama.cpp checkout by -DINFLLM_LLAMA_CPP_DIR=PATH."
        )
    return next(folder.glob("llama_cpp_python-*.tar.gz"))


def read_sdist(sdist: Path, version: str) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of the llama.cpp files that the build needs."""
    prefix = f"llama_cpp_python-{version}/vendor/llama.cpp/"
    with tarfile.open(sdist) as tar:
        for member in tar:
            path = member.name.removeprefix(prefix)
            if path != member.name and path.startswith(KEEP) and (content := tar.extractfile(member)):
                yield path, content.read()


def read_checkout(checkout: Path) -> Iterator[tuple[str, bytes]]:
    for entry in KEEP:
        for file in sorted((checkout / entry).rglob("*")) if entry.endswith("/") else [checkout / entry]:
            if file.is_file():
                yield file.relative_to(checkout).as_posix(), file.read_bytes()


def write_if_changed(file: Path, content: bytes) -> None:
    if file.is_file() and file.read_bytes() == content:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def fetch(tree: Path, sdist: Path | None) -> None:
    """Unpack the pinned release into the tree unless it is there."""
    stamp = tree / ".infllm" / "source"
    source = f"llama-cpp-python {VERSION} sha256:{SHA256[VERSION]}\n" + "".join(f"{path}\n" for path in KEEP)
    if stamp.is_file() and stamp.read_text() == source:
        return
    if tree.exists() and not stamp.is_file():
        raise FetchError(
            f"{tree} was not unpacked by this build, so it is left alone: delete it, "
            f"or use it as it is with -DINFLLM_PATCH=OFF -DINFLLM_LLAMA_CPP_DIR={tree}."
        )
    # renamed when complete: an interrupted run leaves no half tree behind
    part = tree.with_name(tree.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        if sdist:
            check_sha256(sdist, VERSION)
        else:
            sdist = download(VERSION, Path(folder))
        for path, content in read_sdist(sdist, VERSION):
            write_if_changed(part / path, content)
            if (old := tree / path).is_file() and old.read_bytes() == content:
                shutil.copystat(old, part / path)
    write_if_changed(part / ".infllm" / "source", source.encode())
    if tree.exists():
        shutil.rmtree(tree)
    part.rename(tree)


def sync(tree: Path, checkout: Path) -> None:
    """Make the tree a copy of the checkout, apart from the patch."""
    if not (checkout / "include" / "llama.h").is_file():
        raise FetchError(f"{checkout} is not a llama.cpp checkout: it has no include/llama.h.")
    pristine = tree / ".infllm" / "pristine"
    paths = set()
    for path, content in read_checkout(checkout):
        write_if_changed((pristine if (pristine / path).is_file() else tree) / path, content)
        paths.add(path)
    for path, _ in list(read_checkout(tree)):
        if path not in paths:
            (tree / path).unlink()
            (pristine / path).unlink(missing_ok=True)


def patch(tree: Path, patch_dir: Path = PATCH_DIR) -> None:
    """Make every file of the tree what upstream has plus the patches, writing only what changes."""
    state = tree / ".infllm" / "patched.json"  # SHA-256 of the patched files as this function wrote them
    written: dict[str, str] = json.loads(state.read_text()) if state.is_file() else {}
    pristine = tree / ".infllm" / "pristine"

    def upstream(path: str) -> str:
        file = pristine / path if (pristine / path).is_file() else tree / path
        if not file.is_file():
            raise unified_patch.PatchError(f"the tree has no file {path}")
        return file.read_bytes().decode()

    wanted = {path: upstream(path) for path in written}
    for file in sorted(patch_dir.glob("*.patch")):
        try:
            for file_patch in unified_patch.parse(file.read_text()):
                before = wanted.get(file_patch.path) or upstream(file_patch.path)
                wanted[file_patch.path], _ = unified_patch.apply(before, file_patch)
        except unified_patch.PatchError as error:
            raise FetchError(
                f"{file.name} does not apply to {tree}: {error}; "
                "use the pinned llama.cpp release or adapt the patch (scripts/check_patch.py lists releases)."
            ) from None

    for path, text in wanted.items():
        now = (tree / path).read_bytes()
        if now == text.encode():
            continue
        if path in written and hashlib.sha256(now).hexdigest() != written[path]:
            raise FetchError(
                f"{tree / path} was edited by hand and the edit would be lost: "
                "move it into csrc/patches or delete the tree to start afresh."
            )
        write_if_changed(pristine / path, upstream(path).encode())
        (tree / path).write_bytes(text.encode())
    written = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in wanted.items()}
    if written or state.is_file():
        write_if_changed(state, json.dumps(written, indent=1, sort_keys=True).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Put the pinned llama.cpp tree in place and patch it.")
    parser.add_argument("tree", type=Path, help="folder for the patched tree")
    parser.add_argument(
        "--sdist", type=Path, help="llama-cpp-python source distribution, instead of a download"
    )
    parser.add_argument(
        "--from", dest="checkout", type=Path, help="llama.cpp checkout to copy, instead of a download"
    )
    args = parser.parse_args()
    try:
        if args.checkout:
            sync(args.tree, args.checkout.resolve())
        else:
            fetch(args.tree, args.sdist)
        patch(args.tree)
    except (FetchError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
