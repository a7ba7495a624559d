"""Remember how often each part of a mixture was right, for a curriculum to choose by."""

from __future__ import annotations

from collections.abc import Mapping

PARTS = "curriculum/"
"""The prefix of a curriculum's counts in a step's metrics."""
_UNKNOWN, _NEW = 0.5, 0.1


def success_after(success: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
    """Return the success of each part after a step: a tenth of the step's, the rest of before."""
    found = dict(success)
    for name, samples in counts.items():
        if name.startswith(PARTS) and name.endswith("/samples"):
            part = name.removeprefix(PARTS).removesuffix("/samples")
            rate = counts[f"{PARTS}{part}/right"] / samples
            found[part] = (1 - _NEW) * found.get(part, _UNKNOWN) + _NEW * rate
    return found
