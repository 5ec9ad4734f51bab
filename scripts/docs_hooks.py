"""Hooks of mkdocs.yml: two pages are files of the root, and pictures are drawn where a page asks for them.

A page asks by a comment, so that elsewhere than on the site nothing is missing::

    <!-- pictures: eval docs/data/smollm2-135m.jsonl -->
    <!-- pictures: trace scripts/gpu_replay.trace -->
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
_OF_ROOT = {"index.md": "README.md", "threats.md": "THREATS.md"}
_COMMENT = re.compile(r"<!-- pictures: (\w+) (\S+) -->")


@dataclass(frozen=True)
class Picture:
    """What a page shows.

    Attributes
    ----------
    path : str
        Below docs/.
    caption : str
    svg : str
    """

    path: str
    caption: str
    svg: str


def on_files(files: Any, config: Any, **kwargs: Any) -> Any:
    """Draw the pictures that pages ask for.

    Raises
    ------
    PluginError
        When a package that draws them, or what they are drawn from, is missing.
    """
    for page in list(files.documentation_pages()):
        for kind, source in _COMMENT.findall(page.content_string):
            for picture in _pictures(kind, source):
                files.append(File.generated(config, picture.path, content=picture.svg))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """The text of a page with its pictures; links of files in the root are seen from there."""
    if name := _OF_ROOT.get(page.file.src_uri):
        text = (ROOT / name).read_text(encoding="utf-8")
        for page_name, root_name in _OF_ROOT.items():
            text = text.replace(f"]({root_name})", f"]({page_name})")
        return text.replace("](docs/", "](").replace("](LICENSE)", "]")
    return _COMMENT.sub(
        lambda match: "\n\n".join(
            f"![{picture.caption}]({picture.path})\n\n{picture.caption}"
            for picture in _pictures(match[1], match[2])
        ),
        markdown,
    )


@cache
def _pictures(kind: str, source: str) -> list[Picture]:
    if kind not in _DRAW:
        raise PluginError(f"pictures: {kind} is unknown: use {', '.join(_DRAW)}")
    try:
        drawn = _DRAW[kind](ROOT / source)
    except ImportError as err:
        raise PluginError(
            f"the pictures of {source} are drawn by infllm_cpp: pip install '.[docs]' ({err})"
        ) from None
    except (OSError, ValueError, RuntimeError) as err:
        raise PluginError(f"the pictures of {source} cannot be drawn: {err}") from None
    begin = f"pictures/{kind}-{Path(source).stem}"
    return [Picture(f"{begin}-{name}.svg", caption, _svg(figure)) for name, caption, figure in drawn]


def _svg(figure: Any) -> str:
    """The same text for the same figure, every time."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "infllm-cpp"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _draw_eval(path: Path) -> list[tuple[str, str, Any]]:
    """What `infllm eval --plot` draws; name, caption and figure each."""
    from infllm_cpp.evaluation.report import pictures
    from infllm_cpp.evaluation.runner import read_results

    made = pictures(read_results(path))
    return [(name, figure.axes[0].get_title(), figure) for name, figure in made.items()]


def _draw_trace(path: Path) -> list[tuple[str, str, Any]]:
    """Figures of `infllm trace report`, but for those of simulated caches."""
    from infllm_cpp.trace import read_trace
    from infllm_cpp.trace.analysis import analyse
    from infllm_cpp.trace.report import make_figures

    return [
        (figure.title.lower().replace(" ", "-"), f"{figure.title}. {figure.note}", figure.drawn)
        for figure in make_figures(analyse(read_trace(path), simulated=False))
    ]


_DRAW: dict[str, Callable[[Path], list[tuple[str, str, Any]]]] = {"eval": _draw_eval, "trace": _draw_trace}
