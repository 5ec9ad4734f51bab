"""What is compiled into the package and is not ours: its licences, and a list of it in CycloneDX's format.

    python scripts/bundled.py TREE VERSION OUT [--openmp]

CMake runs this for wheels. ``TREE`` is that of llama.cpp, ``VERSION`` ours; what is written into ``OUT``
goes to the wheel's ``dist-info``: ``licenses/`` (PEP 639), ``sboms/infllm-cpp.cdx.json`` (PEP 770). Texts and
versions are read from the tree, so that they are those of what is compiled; a part without a row below is an
error.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import fetch_llama_cpp


class BundledError(Exception):
    """One sentence: what has no licence."""


@dataclass(frozen=True)
class Part:
    """A library of others.

    Attributes
    ----------
    name : str
    licence : str
        SPDX expression.
    source : str
        Where it comes from, for package URLs.
    text, within : str
        File of the tree that has the licence, and what of it (group 1 of a pattern); default: all of it.
    version_file, version : str
        File that has the version, and its numbers (groups of a pattern); default: it has none.
    """

    name: str
    licence: str
    source: str
    text: str
    within: str = ""
    version_file: str = ""
    version: str = ""


_FREE = r"(This is free and unencumbered software[\s\S]*?)\*/"
_CMAKE = r"_VERSION_MAJOR (\d+)[\s\S]*?_VERSION_MINOR (\d+)[\s\S]*?_VERSION_PATCH (\d+)"

PARTS = (
    Part("llama.cpp", "MIT", "ggml-org/llama.cpp", "LICENSE", version_file="CMakeLists.txt", version=_CMAKE),
    Part("ggml", "MIT", "ggml-org/ggml", "LICENSE", version_file="ggml/CMakeLists.txt", version=_CMAKE),
    Part("llamafile sgemm", "MIT", "mozilla-ai/llamafile",
         "ggml/src/ggml-cpu/llamafile/sgemm.cpp", r"\A((?://.*\n)+)"),
    Part("YaRN", "MIT", "jquesnelle/yarn",
         "ggml/src/ggml-cpu/ops.cpp", r"(// YaRN algorithm.*\n// MIT licensed.*\n)"),
    Part("JSON for Modern C++", "MIT", "nlohmann/json", "licenses/LICENSE-jsonhpp",
         version_file="vendor/nlohmann/json.hpp", version=r"version (\d+)\.(\d+)\.(\d+)"),
    Part("cpp-httplib", "MIT", "yhirose/cpp-httplib", "vendor/cpp-httplib/LICENSE",
         version_file="vendor/cpp-httplib/httplib.h", version=r'VERSION "(\d+)\.(\d+)\.(\d+)"'),
    Part("stb_image", "MIT OR Unlicense", "nothings/stb",
         "vendor/stb/stb_image.h", r"(This software is available under 2 licenses[\s\S]*)\*/",
         version_file="vendor/stb/stb_image.h", version=r"stb_image - v(\d+)\.(\d+)"),
    Part("miniaudio", "Unlicense OR MIT-0", "mackron/miniaudio",
         "vendor/miniaudio/miniaudio.h", r"(This software is available as a choice[\s\S]*)\*/",
         version_file="vendor/miniaudio/miniaudio.h", version=r"miniaudio - v(\d+)\.(\d+)\.(\d+)"),
    Part("subprocess.h", "Unlicense", "sheredom/subprocess.h", "vendor/sheredom/subprocess.h", _FREE),
    Part("base64.hpp", "Unlicense", "tobiaslocker/base64", "common/base64.hpp", _FREE),
    Part("xxHash", "BSD-2-Clause", "Cyan4973/xxHash", "vendor/hash/xxhash/LICENSE",
         version_file="vendor/hash/xxhash/xxhash.h",
         version=r"define XXH_VERSION_MAJOR +(\d+)\n.*_MINOR +(\d+)\n.*_RELEASE +(\d+)"),
    Part("rotate-bits", "MIT", "jb55/rotate-bits.h", "vendor/hash/rotate-bits/LICENSE.md"),
    Part("sha1", "LicenseRef-public-domain", "clibs/sha1",
         "vendor/hash/sha1/sha1.c", r"/\*\n(SHA-1 in C[\s\S]*?Public Domain)"),
    Part("sha256", "LicenseRef-public-domain", "jb55/sha256.c", "vendor/hash/sha256/LICENSE"),
)  # fmt: skip

# a machine where a wheel is built that carries GCC's OpenMP library has one of these: Debian, Red Hat
OPENMP_TEXTS = ("/usr/share/doc/libgomp1/copyright", "/usr/share/licenses/libgcc/COPYING.RUNTIME")
OPENMP_LICENCE = "GPL-3.0-or-later WITH GCC-exception-3.1"


def read(tree: Path, path: str, pattern: str) -> tuple[str, ...]:
    """Groups of a pattern in a file of the tree."""
    file = tree / path
    match = re.search(pattern, file.read_text(encoding="utf-8")) if file.is_file() else None
    if match is None:
        raise BundledError(f"{file} has no {pattern!r}: adapt its row in scripts/bundled.py.")
    return match.groups()


def check_complete(tree: Path) -> None:
    """Every folder of vendor/ and every file of licenses/ belongs to a row."""
    known = [path for part in PARTS for path in (part.text, part.version_file)]
    folders = [file for file in sorted((tree / "vendor").rglob("*")) if file.is_dir()]
    for file in folders + sorted((tree / "licenses").glob("*")):
        path = file.relative_to(tree).as_posix()
        if not any(entry == path or entry.startswith(path + "/") for entry in known):
            raise BundledError(f"{file} belongs to no row of scripts/bundled.py: add one, with its licence.")


def component(name: str, version: str, licence: str, purl: str) -> dict[str, object]:
    """A library in CycloneDX's format."""
    result: dict[str, object] = {"type": "library", "name": name, "licenses": [{"expression": licence}]}
    if version:
        result["version"] = version
        purl += f"@{version}"
    return result | {"purl": purl}


def write(tree: Path, version: str, out: Path, openmp: bool) -> None:
    """Write licences and list into a folder."""
    check_complete(tree)
    licences = out / "licenses" / "bundled"
    licences.mkdir(parents=True, exist_ok=True)
    components = []
    for part in PARTS:
        text = read(tree, part.text, part.within or r"([\s\S]*)")[0]
        (licences / f"{part.name}.txt").write_text(text, encoding="utf-8", newline="\n")
        number = ".".join(read(tree, part.version_file, part.version)) if part.version else ""
        components.append(component(part.name, number, part.licence, f"pkg:github/{part.source.lower()}"))

    pinned = fetch_llama_cpp.VERSION
    components[0]["pedigree"] = {
        "notes": f"vendor/llama.cpp of the source distribution of llama-cpp-python {pinned}, "
        f"SHA-256 {fetch_llama_cpp.SHA256[pinned]}, with the patches of csrc/patches in that of infllm-cpp"
    }
    try:
        pybind11 = distribution("pybind11")
    except PackageNotFoundError:
        raise BundledError(f"{sys.executable} has no pybind11, whose licence a wheel needs.") from None
    for file in pybind11.files or []:
        if file.name == "LICENSE":
            (licences / "pybind11.txt").write_text(file.read_text(), encoding="utf-8", newline="\n")
    components.append(component("pybind11", pybind11.version, "BSD-3-Clause", "pkg:pypi/pybind11"))
    if openmp:
        texts = [Path(path).read_text(encoding="utf-8") for path in OPENMP_TEXTS if Path(path).is_file()]
        about = f"libgomp, a part of GCC (gcc.gnu.org), whose source it has: {OPENMP_LICENCE}\n"
        (licences / "libgomp.txt").write_text((texts or [about])[0], encoding="utf-8", newline="\n")
        components.append(component("libgomp", "", OPENMP_LICENCE, "pkg:generic/libgomp"))

    sbom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component("infllm-cpp", version, "MIT", "pkg:pypi/infllm-cpp")},
        "components": components,
    }
    (out / "sboms").mkdir(exist_ok=True)
    (out / "sboms" / "infllm-cpp.cdx.json").write_text(json.dumps(sbom, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Licences and list of what a wheel has of others.")
    parser.add_argument("tree", type=Path, help="llama.cpp tree")
    parser.add_argument("version", help="version of infllm-cpp")
    parser.add_argument("out", type=Path, help="folder for licenses/ and sboms/")
    parser.add_argument("--openmp", action="store_true", help="the wheel will carry GCC's OpenMP library")
    args = parser.parse_args()
    try:
        write(args.tree, args.version, args.out, args.openmp)
    except (BundledError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
