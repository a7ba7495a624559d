"""Writes where the project lives into pyproject.toml and all texts that name it.

`make address REPOSITORY=someone/rlkit` is what a release asks for: the badges of the notebooks, the
page on installing and the citation then lead there. pyproject.toml has the one address that counts.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+")
HOST = "https://github.com/"
TEXTS = ("pyproject.toml", "CITATION.cff", "README.md", "docs/**/*.md", "notebooks/*.ipynb")


def current(root: Path) -> str:
    """Return OWNER/NAME as `[project.urls] Repository` has it."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return str(project["urls"]["Repository"]).removeprefix(HOST)


def move(root: Path, name: str) -> list[Path]:
    """Replace the present address by another one in every text.

    Args:
        root: The folder of the repository.
        name: OWNER/NAME of the new address on GitHub.

    Returns:
        The files that changed, in order.

    Raises:
        ValueError: The name is not OWNER/NAME.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"REPOSITORY must be OWNER/NAME, got {name!r}")
    old, changed = current(root), []
    # Colab's addresses name the host without a dot: colab.research.google.com/github/OWNER/NAME.
    whole = re.compile(rf"(github(?:\.com)?/){re.escape(old)}(?![\w-])")
    for path in sorted({path for pattern in TEXTS for path in root.glob(pattern)}):
        text = path.read_text()
        moved = whole.sub(rf"\g<1>{name}", text)
        if moved != text:
            path.write_text(moved)
            changed.append(path)
    return changed


def main(arguments: list[str]) -> int:
    """Move the texts of this repository to the address that is given."""
    root = Path(__file__).resolve().parent.parent
    try:
        changed = move(root, arguments[0] if arguments else "")
    except ValueError as error:
        print(f"address: {error}", file=sys.stderr)
        return 2
    for path in changed:
        print(path.relative_to(root))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
