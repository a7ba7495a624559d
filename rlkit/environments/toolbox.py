"""Tools to choose from: a calculator, Python in a sandbox, and search in a folder of texts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rlkit.environments.arithmetic import calculate
from rlkit.environments.limited import ToolError
from rlkit.runtime.sandbox import Confinement, Isolation, require, run_python

_WORD = re.compile(r"\w+")


def calculator(expression: str) -> str:
    """Calculate an arithmetic expression.

    Args:
        expression: Numbers with + - * / // % ** and brackets.
    """
    return calculate(expression)


def python_in(isolation: str) -> Callable[..., str]:
    """Return a tool that runs Python in a sandbox of this kind.

    Args:
        isolation: `namespaces`, or `limits` where the machine forbids namespaces; see `Isolation`.

    Raises:
        ValueError: The machine forbids it, or there is no isolation of this name.
    """
    kind = Isolation(isolation)
    require(kind)
    # Time and memory have the limits of the call, whatever they are: the sandbox keeps the least.
    walls = Confinement(kind, seconds=None, memory_mb=1 << 20, packages=False)

    def python(code: str) -> str:
        """Run a Python program and return what it prints.

        Args:
            code: The program; it has the standard library and an empty folder.
        """
        ran = run_python(code, walls)
        if ran.code == 0:
            return ran.printed or "(no output)"
        last = ran.errors.strip().splitlines()[-1:] or [f"exit code {ran.code}"]
        raise ToolError(f"{last[0]}\n{ran.printed}".strip())

    return python


def search_in(folder: str | Path, *, results: int = 3) -> Callable[..., str]:
    """Return a tool that searches the paragraphs of the text files in a folder by BM25.

    Args:
        folder: Files ending in .txt or .md, read once.
        results: Most paragraphs of an answer, >= 1.

    Raises:
        ValueError: The folder holds no text.
    """
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix in (".txt", ".md"))
    passages = [
        part.strip() for file in files for part in file.read_text().split("\n\n") if part.strip()
    ]
    if not passages:
        raise ValueError(f"search_in must be given a folder with .txt or .md files, got {folder}")
    counts = [Counter(_words(passage)) for passage in passages]
    spread = Counter(word for count in counts for word in count)
    mean = sum(count.total() for count in counts) / len(counts)

    def score(query: list[str], count: Counter[str]) -> float:
        total = 0.0
        for word in query:
            rare = math.log(1 + (len(counts) - spread[word] + 0.5) / (spread[word] + 0.5))
            length = 0.25 + 0.75 * count.total() / mean
            total += rare * count[word] * 2.2 / (count[word] + 1.2 * length)
        return total

    def search(query: str) -> str:
        """Search the documents and return the paragraphs that fit best.

        Args:
            query: A few words.
        """
        words = _words(query)
        ranked = sorted(range(len(passages)), key=lambda i: -score(words, counts[i]))
        found = [passages[i] for i in ranked[:results] if score(words, counts[i]) > 0]
        return "\n\n".join(found) or "nothing found"

    return search


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
