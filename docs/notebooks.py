"""MkDocs calls `on_files` while it builds the site: each notebook becomes a page, with its outputs.

A notebook is JSON. tests/notebooks allows two kinds of output: what a cell printed, and figures. So
this takes no Jupyter. The notebook itself lies beside its page.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\((?P<address>[^)]*)\)")
"""Its image comes from another site, which a page on the disk must not ask."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page, its figures and the file itself of every notebook."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
        for name, png in figures(path.stem, cells):
            files.append(File.generated(config, f"notebooks/{name}", content=png))
        page = markdown(path.stem, cells)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
    return files


def markdown(name: str, cells: list[dict[str, Any]]) -> str:
    """Return a notebook as a page of Markdown.

    Args:
        name: Its file's name without the ending.
        cells: The cells, as the file has them.
    """
    drawn = iter(figures(name, cells))
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            links = rf"[Open in Colab](\g<address>) or [take the file]({name}.ipynb)."
            parts.append(BADGE.sub(links, text))
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                parts.append(f"![This is the figure that the cell above draws.]({next(drawn)[0]})")
            elif "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def figures(name: str, cells: list[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each figure, in order."""
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    pictures = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    for number, picture in enumerate(pictures, start=1):
        yield f"{name}_{number}.png", base64.b64decode("".join(picture))
