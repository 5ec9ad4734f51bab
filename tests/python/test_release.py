"""What a release needs: one version, licences and list of what is compiled in, backends that are found."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import bundled
import check_patch
import fetch_llama_cpp
import infllm_cpp
from test_fetch_llama_cpp import PATCH, UPSTREAM

ROOT = Path(__file__).resolve().parents[2]
TREE = ROOT / "third_party" / "llama.cpp"


def test_there_is_one_version() -> None:
    pattern = re.search(r"^regex = '(.*)'$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert pattern is not None
    version = re.search(pattern[1], (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    assert version is not None
    assert infllm_cpp.__version__ == version["value"]
    command = [sys.executable, "-m", "infllm_cpp", "--version"]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert output.split() == ["infllm-cpp", version["value"]]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == version["value"]


def test_every_part_has_its_licence_and_is_listed(tmp_path: Path) -> None:
    bundled.write(TREE, "1.2.3", tmp_path, openmp=True)
    sbom = json.loads((tmp_path / "sboms" / "infllm-cpp.cdx.json").read_text())
    assert sbom["metadata"]["component"]["purl"] == "pkg:pypi/infllm-cpp@1.2.3"
    names = {component["name"] for component in sbom["components"]}
    assert names == {part.name for part in bundled.PARTS} | {"pybind11", "libgomp"}
    texts = {file.stem: file.read_text() for file in (tmp_path / "licenses" / "bundled").iterdir()}
    assert texts.keys() == names
    for part in bundled.PARTS:
        assert re.search(r"copyright|public\s+domain", texts[part.name], re.IGNORECASE), part.name
    assert "Redistributions in binary form" in texts["xxHash"]
    versions = {component["name"]: component.get("version") for component in sbom["components"]}
    header = (TREE / "vendor" / "cpp-httplib" / "httplib.h").read_text()
    assert f'CPPHTTPLIB_VERSION "{versions["cpp-httplib"]}"' in header


def test_a_part_without_a_row_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "vendor" / "new-library").mkdir(parents=True)
    with pytest.raises(bundled.BundledError, match="new-library belongs to no row"):
        bundled.write(tmp_path, "1.2.3", tmp_path / "out", openmp=False)


@pytest.mark.parametrize(("upstream", "applies"), [("new\n" + UPSTREAM, True), ("gone\n", False)])
def test_the_newest_release_is_checked_whatever_its_number(
    upstream: str,
    applies: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def pip_download(requirement: str, folder: Path) -> Path:
        assert requirement == "llama-cpp-python"
        sdist = folder / "llama_cpp_python-9.8.7.tar.gz"
        with tarfile.open(sdist, "w:gz") as tar:
            info = tarfile.TarInfo("llama_cpp_python-9.8.7/vendor/llama.cpp/src/file.cpp")
            info.size = len(upstream)
            tar.addfile(info, io.BytesIO(upstream.encode()))
        return sdist

    (tmp_path / "hook.patch").write_text(PATCH)
    monkeypatch.setattr(fetch_llama_cpp, "PATCH_DIR", tmp_path)
    monkeypatch.setattr(fetch_llama_cpp, "pip_download", pip_download)
    monkeypatch.setattr(sys, "argv", ["check_patch.py", "--latest"])
    with pytest.raises(SystemExit) as end:
        check_patch.main()
    assert end.value.code == (0 if applies else 1)
    assert re.search(rf"^9\.8\.7 +{'yes' if applies else 'no'} ", capsys.readouterr().out, re.MULTILINE)


def module(file: Path, marker: Path) -> None:
    """A backend that leaves a file when it is loaded."""
    code = f'fclose(fopen("{marker}", "w"));'
    code = f"#include <stdio.h>\n__attribute__((constructor)) static void load(void) {{ {code} }}\n"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(file)]
    subprocess.run(command, input=code, text=True, check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="the folder of a DLL is asked for in another way")
def test_backends_are_loaded_from_the_folder_of_the_library_alone(tmp_path: Path) -> None:
    library, cwd = tmp_path / "lib", tmp_path / "cwd"
    cwd.mkdir()
    shutil.copytree(
        infllm_cpp.library_dir(), library, ignore=lambda _, names: [n for n in names if "ggml" not in n]
    )
    module(library / "libggml-blas.so", tmp_path / "from library")
    module(cwd / "libggml-blas.so", tmp_path / "from cwd")
    module(cwd / "libggml-cuda-best.so", tmp_path / "from cwd")
    program = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).ggml_backend_load_all()"
    file = next(file for file in library.iterdir() if file.stem == "libggml")
    subprocess.run([sys.executable, "-c", program, str(file)], cwd=cwd, check=True)
    assert (tmp_path / "from library").exists()
    assert not (tmp_path / "from cwd").exists()
