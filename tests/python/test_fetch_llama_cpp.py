"""The scripts that unpack and patch llama.cpp, on a tree of one file."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

import fetch_llama_cpp
import unified_patch

UPSTREAM = "".join(f"line {i}\n" for i in range(1, 21))
PATCH = """\
--- a/src/file.cpp
+++ b/src/file.cpp
@@ -9,3 +9,4 @@
 line 9
 line 10
+hook
 line 11
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An unpatched tree, and the patch in `patches` next to it."""
    (tmp_path / "tree" / "src").mkdir(parents=True)
    (tmp_path / "tree" / "src" / "file.cpp").write_text(UPSTREAM)
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "hook.patch").write_text(PATCH)
    return tmp_path / "tree"


def patch(tree: Path) -> str:
    fetch_llama_cpp.patch(tree, tree.parent / "patches")
    return (tree / "src" / "file.cpp").read_text()


def test_hunk_goes_where_it_is_stated() -> None:
    text, offsets = unified_patch.apply(UPSTREAM, unified_patch.parse(PATCH)[0])
    assert text == UPSTREAM.replace("line 10\n", "line 10\nhook\n")
    assert offsets == [0]


def test_hunk_follows_code_that_moved() -> None:
    text, offsets = unified_patch.apply("new\n" * 5 + UPSTREAM, unified_patch.parse(PATCH)[0])
    assert "line 10\nhook\nline 11\n" in text
    assert offsets == [5]


def test_hunk_is_never_guessed() -> None:
    file_patch = unified_patch.parse(PATCH)[0]
    with pytest.raises(unified_patch.PatchError, match=r"hunk 1 of 1 does not fit src/file.cpp \(line 9\)"):
        unified_patch.apply(UPSTREAM.replace("line 11\n", ""), file_patch)
    with pytest.raises(unified_patch.PatchError, match="fits 2 places"):
        unified_patch.apply("new\n" + UPSTREAM + UPSTREAM, file_patch)


def test_truncated_patch_is_refused() -> None:
    with pytest.raises(unified_patch.PatchError, match="ends in the middle of a hunk"):
        unified_patch.parse(PATCH.removesuffix(" line 11\n"))


def test_second_run_writes_nothing(tree: Path) -> None:
    assert "hook\n" in patch(tree)
    times = {file: file.stat().st_mtime_ns for file in tree.rglob("*")}
    patch(tree)
    assert {file: file.stat().st_mtime_ns for file in tree.rglob("*")} == times


def test_changed_and_removed_patch_reach_the_tree(tree: Path) -> None:
    patch(tree)
    file = tree.parent / "patches" / "hook.patch"
    file.write_text(PATCH.replace("+hook", "+better hook"))
    assert patch(tree) == UPSTREAM.replace("line 10\n", "line 10\nbetter hook\n")
    file.unlink()
    assert patch(tree) == UPSTREAM


def test_edit_by_hand_is_not_overwritten(tree: Path) -> None:
    edited = patch(tree) + "edited\n"
    (tree / "src" / "file.cpp").write_text(edited)
    with pytest.raises(fetch_llama_cpp.FetchError, match="was edited by hand"):
        patch(tree)
    assert (tree / "src" / "file.cpp").read_text() == edited


def test_patch_that_does_not_apply_changes_nothing(tree: Path) -> None:
    (tree.parent / "patches" / "later.patch").write_text(PATCH.replace("line 9", "line nine"))
    with pytest.raises(fetch_llama_cpp.FetchError, match=r"later\.patch does not apply"):
        patch(tree)
    assert (tree / "src" / "file.cpp").read_text() == UPSTREAM


def test_tree_of_somebody_else_is_left_alone(tree: Path) -> None:
    with pytest.raises(fetch_llama_cpp.FetchError, match="was not unpacked by this build"):
        fetch_llama_cpp.fetch(tree, sdist=None)
    assert (tree / "src" / "file.cpp").read_text() == UPSTREAM


def test_wrong_hash_is_refused(tmp_path: Path) -> None:
    sdist = tmp_path / "llama_cpp_python.tar.gz"
    sdist.write_bytes(b"not the release")
    with pytest.raises(fetch_llama_cpp.FetchError, match=r"has SHA-256 .*, expected 832db0"):
        fetch_llama_cpp.fetch(tmp_path / "tree", sdist)
    assert not (tmp_path / "tree").exists()


def test_checkout_is_copied_and_kept_in_step(tmp_path: Path) -> None:
    checkout, tree = tmp_path / "checkout", tmp_path / "tree"
    for path in ("include/llama.h", "src/file.cpp", "src/old.cpp", "docs/not-needed.md"):
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_text(UPSTREAM)
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "hook.patch").write_text(PATCH)

    fetch_llama_cpp.sync(tree, checkout)
    assert "hook\n" in patch(tree)
    assert not (tree / "docs").exists()
    assert (checkout / "src" / "file.cpp").read_text() == UPSTREAM

    (checkout / "src" / "old.cpp").unlink()
    (checkout / "src" / "file.cpp").write_text("new\n" + UPSTREAM)
    fetch_llama_cpp.sync(tree, checkout)
    assert patch(tree).startswith("new\nline 1\n")
    assert "hook\n" in patch(tree)
    assert not (tree / "src" / "old.cpp").exists()


def test_folder_without_llama_cpp_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fetch_llama_cpp.FetchError, match=r"has no include/llama\.h"):
        fetch_llama_cpp.sync(tmp_path / "tree", tmp_path)


def test_another_list_of_files_is_unpacked_anew_and_same_files_keep_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = fetch_llama_cpp.VERSION
    sdist = tmp_path / "sdist.tar.gz"
    with tarfile.open(sdist, "w:gz") as tar:
        for name in ("src/a.cpp", "tests/b.cpp"):
            info = tarfile.TarInfo(f"llama_cpp_python-{version}/vendor/llama.cpp/{name}")
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    monkeypatch.setitem(fetch_llama_cpp.SHA256, version, hashlib.sha256(sdist.read_bytes()).hexdigest())
    tree = tmp_path / "tree"

    monkeypatch.setattr(fetch_llama_cpp, "KEEP", ("src/",))
    fetch_llama_cpp.fetch(tree, sdist)
    assert not (tree / "tests").exists()
    os.utime(tree / "src/a.cpp", (1, 1))

    monkeypatch.setattr(fetch_llama_cpp, "KEEP", ("src/", "tests/b.cpp"))
    fetch_llama_cpp.fetch(tree, sdist)
    assert (tree / "tests/b.cpp").read_text() == "tests/b.cpp"
    assert (tree / "src/a.cpp").stat().st_mtime == 1  # builds stay incremental
