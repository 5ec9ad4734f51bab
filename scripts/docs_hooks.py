"""Hooks of mkdocs.yml: the first page is README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """The text of a page; links of README.md are seen from the root."""
    if page.file.src_uri != "index.md":
        return markdown
    return (
        (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](").replace("](LICENSE)", "]")
    )
