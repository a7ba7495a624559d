"""The library tells its user through this about what takes time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

Say = Callable[[str], None]
"""Takes one line of progress for the user."""


def printed(line: str) -> None:
    """Print a line; a terminal that is gone must not end the run."""
    with contextlib.suppress(OSError):
        print(line)


def unheard(_line: str) -> None:
    """Leave it to the first rank, which says the same."""
