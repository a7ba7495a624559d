"""`python -m rlkit.reference.commands` prints a page with the help text of every command."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Iterator, Mapping

from rlkit.cli import COMMANDS

_WIDTH = "100"


def help_of(name: str) -> str:
    """Return what `rlkit NAME --help` prints, 100 columns wide."""
    module = importlib.import_module(COMMANDS.get(name, "rlkit.cli.help"))
    printed = io.StringIO()
    # argparse ends with SystemExit.
    with (
        _columns(_WIDTH),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        module.run(["--help"])
    return printed.getvalue().rstrip()


@contextlib.contextmanager
def _columns(width: str) -> Iterator[None]:
    """Set the width of a terminal, which argparse takes from the environment alone."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = width
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


def document(commands: Mapping[str, str] = COMMANDS) -> str:
    """Return the page: the general help, then a section for each command."""
    parts = ["## rlkit\n", f"```text\n{help_of('')}\n```\n"]
    for name in sorted(commands):
        parts += [f"## rlkit {name}\n", f"```text\n{help_of(name)}\n```\n"]
    return "\n".join(parts)


if __name__ == "__main__":
    print(document())
