"""Runs the code cells of a notebook: `python tests/support/notebook_cells.py NOTEBOOK.ipynb`.

Prints what each cell printed as one JSON list. A notebook is JSON, so this needs no Jupyter.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    """The cells of a kind: `code` or `markdown`."""
    found = json.loads(path.read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    """The text of a cell, which is kept as a list of lines."""
    return "".join(cell["source"])


def printed(cell: dict[str, Any]) -> str:
    """The output that a cell had when its outputs were kept."""
    outputs = [o for o in cell["outputs"] if o["output_type"] == "stream"]
    return "".join("".join(output["text"]) for output in outputs)


def main(path: Path) -> None:
    """Run all code cells in one namespace."""
    import matplotlib

    matplotlib.use("Agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    said = []
    for number, cell in enumerate(cells(path, "code")):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*non-interactive.*")  # plt.show()
            exec(compile(source(cell), f"{path.name} cell {number}", "exec"), names)
        said.append(out.getvalue())
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
