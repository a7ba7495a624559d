"""The library tells its user through this about what takes time."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]
"""Takes one line of progress for the user."""
