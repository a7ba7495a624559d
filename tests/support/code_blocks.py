"""The fenced blocks of README and docs/, and what a test has to know about each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
LANGUAGES = {"bash", "python", "json", "yaml", "toml", "text"}
NEEDS = {
    "gpu",
    "network",
    "ollama",
    "openai",
    "optuna",
    "ray",
    "tensorboard",
    "trackio",
    "verifiers",
}
"""A block after `<!-- needs: WORD -->` is read and composed by `make test`, and not executed there.
tests/test_page_commands.py says which of them are executed, and where."""

_FENCE = re.compile(
    r"(?:^<!-- needs: (?P<needs>\w+) -->\n)?"
    r'^(?P<indent> *)```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?[^\n]*\n'
    r"(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_PLACEHOLDER = re.compile(r"\[?OVERRIDES\]?|\.\.\.|\[OPTIONS\]")


class Block(NamedTuple):
    """A block is one fence of a page."""

    language: str
    title: str
    """Name of the file that the reader is told to write; empty for none."""
    needs: str
    """Something that CI does not have; empty for nothing."""
    text: str


def pages() -> list[Path]:
    """Return README and the pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def experiments() -> list[Path]:
    """Return the pages of experiments that hold a command."""
    found = sorted((ROOT / "experiments").rglob("README.md"))
    return [page for page in found if re.search(r"^rlkit ", page.read_text(), re.MULTILINE)]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    return [
        Block(m["language"], m["title"] or "", m["needs"] or "", m["text"])
        for m in _FENCE.finditer(page.read_text())
    ]


def write_files(page: Path, folder: Path) -> None:
    """Write the titled blocks of a page into `folder`, as its reader is told to."""
    for block in blocks(page):
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text)


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command of a block of bash, without comments and placeholders."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        kept = [word for word in words if not _PLACEHOLDER.fullmatch(word)]
        for joined, part in groupby(kept, key="&&".__eq__):
            if not joined:
                yield list(part)


def rlkit_arguments(words: list[str]) -> list[str] | None:
    """Return what a command gives to rlkit; None for another program."""
    for place, word in enumerate(words[:8]):
        if word.rsplit("/", 1)[-1] == "rlkit" and words[0] not in ("cd", "pip", "make", "export"):
            return words[place + 1 :]
    return None
