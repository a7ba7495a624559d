"""The schedule of a run says what happens between which steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSchedule:
    """When the loop evaluates, saves and ends."""

    num_steps: int
    evaluate_every: int
    """0 = only before and after."""
    checkpoint_every: int
    keep_last: int
    """Newest checkpoints that stay."""
    keep_every: int = 0
    """Checkpoints of its multiples stay as well; 0 = none."""
    config_hash: str
