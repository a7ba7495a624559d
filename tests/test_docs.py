"""README, CONTRIBUTING and the pages of docs/ name paths, modules and make targets that exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").rglob("README.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]
TOP = "rlkit|algorithms|rewards|kernels|conf|tests|docs|benchmarks|experiments|examples|constraints"
# A path starts at a top folder, and not in the middle of a longer path or of a URL.
PATH = re.compile(rf"(?<![\w/.@-])(?:{TOP})/[\w.*/-]+")
MODULE = re.compile(r"(?<![\w/.])rlkit(?:\.[a-z_]\w*)+")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
FOR_THE_READER = re.compile(r"\b[A-Z]{3,}\b|\.\.\.|foo")
"""The reader is to fill in a part of such a path: NAME, `...`, foo."""
METRICS = re.compile(r"^rewards/[a-z_]+(/(mean|std|seconds|not_applicable|failed))?$")


def missing_paths(page: Path) -> list[str]:
    """Return the paths that `page` names and that lead nowhere, from the root or from the page."""
    text = page.read_text()
    found = [match.rstrip("./-") for match in PATH.findall(text)]
    found += [link for link in LINK.findall(text) if "://" not in link and "mailto:" not in link]
    return [
        path
        for path in found
        if not FOR_THE_READER.search(path) and not METRICS.match(path) and not _exists(page, path)
    ]


def _exists(page: Path, path: str) -> bool:
    """Return whether a file or folder, or a glob with a result, lies at `path`."""
    for folder in (ROOT, page.parent):
        if (folder / path).exists() or ("*" in path and any(folder.glob(path))):
            return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_exists(page: Path) -> None:
    assert missing_paths(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_dotted_name_is_there(page: Path) -> None:
    for name in MODULE.findall(page.read_text()):
        if not name.endswith((".json", ".csv", ".md")):
            assert _resolves(name), name


def _resolves(name: str) -> bool:
    """Return whether `name` is a module of rlkit or something that a module holds."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


def test_a_stale_path_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`rlkit/trainer.py` and `rlkit/bench`, [a](gone.md), [b](page.md), `rlkit/training/NAME.py`"
    )
    assert missing_paths(page) == ["rlkit/trainer.py", "rlkit/bench", "gone.md"]
    assert not _resolves("rlkit.lora") and _resolves("rlkit.functional.reverse_k3")


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)`", page.read_text()):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_contributing_is_one_narrow_page() -> None:
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    assert len(lines) <= 90 and max(map(len, lines)) <= 100
