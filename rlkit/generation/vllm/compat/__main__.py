"""`python -m rlkit.generation.vllm.compat FOLDER ...` prints which features which vLLM can have.

Each FOLDER is the folder `vllm` of an installed vLLM, or of a wheel that was unpacked. Nothing is
imported from it, so CUDA versions can be judged on a machine without a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rlkit.generation.vllm.compat.features import Feature, gaps, line_of


def table(roots: Sequence[Path]) -> str:
    """Make a Markdown table with a row for each source tree and a column for each feature."""
    head = ["vLLM", "line", *(feature.value for feature in Feature)]
    rows, notes = [head, ["---"] * len(head)], []
    for root in roots:
        name, line = _name(root), line_of(root)
        lacking = {feature: gaps(root, feature) for feature in Feature}
        rows.append(
            [name, line.name if line else "none", *("no" if g else "yes" for g in lacking.values())]
        )
        notes += [
            f"- {name}, {f.value}: {', '.join(names)}" for f, names in lacking.items() if names
        ]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), *notes])


def _name(root: Path) -> str:
    """Read package and version off the metadata beside the package; else its folder's name."""
    infos = sorted(root.parent.glob("vllm*.dist-info"))
    return infos[0].name.removesuffix(".dist-info").replace("_", "-", 1) if infos else str(root)


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:]]
    wrong = [str(folder) for folder in folders if not (folder / "version.py").is_file()]
    if wrong or not folders:
        sys.exit(f"FOLDER must be the folder `vllm` of a vLLM, got {wrong[0] if wrong else 'none'}")
    print(table(folders))
