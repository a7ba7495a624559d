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

    def due(self, step: int) -> str:
        """Return the label of the evaluation that belongs after `step` steps, or ""."""
        every = self.evaluate_every
        return f"step {step}" if every and step % every == 0 and step < self.num_steps else ""
