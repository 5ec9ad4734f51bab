"""What the docs say about llama-cpp-python's API and ours is what both have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import peer_table


def test_the_table_is_true() -> None:
    # a process of its own: llama-cpp-python loads libllama, too
    script = Path(peer_table.__file__)
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    page = peer_table.DOC.read_text(encoding="utf-8")
    written = page.split(peer_table.BEGIN)[1].split(peer_table.END)[0]
    assert written == result.stdout, "run python scripts/peer_table.py --write, and see what the page says"
