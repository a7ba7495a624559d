"""A curriculum reads the parts of a mixture by how often the policy gets them right.

A part that is never or always right teaches nothing. Each is drawn with its own weight times
4 p (1 - p), p being its success so far, and never with less than a floor. The draw is a function of
the run seed, the step and p; the checkpoint holds p, so that a resumed run draws the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlkit.rewards.parts import PART
from rlkit.tasks.order import train_indices
from rlkit.types import Completion

_UNKNOWN = 0.5
"""The success of a part that no step has had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curriculum:
    """The parts of a mixture, and how to draw from them."""

    weights: Mapping[str, float]
    """The weight of each part, > 0."""
    sizes: Mapping[str, int | None]
    """The training examples of each part; None = endless."""
    success: Callable[[Completion], bool]
    floor: float
    """The least factor of a part's weight, in (0, 1]."""

    def is_right(self, completion: Completion) -> tuple[str, bool]:
        """Return the part that a completion is of, and whether it is right."""
        return str(completion.prompt.columns[PART]), self.success(completion)

    def shares(self, success: Mapping[str, float]) -> dict[str, float]:
        """Return the chance of each part, given its success so far; they add up to 1."""
        drawn = {}
        for name, weight in self.weights.items():
            p = success.get(name, _UNKNOWN)
            drawn[name] = weight * max(self.floor, 4.0 * p * (1.0 - p))
        total = sum(drawn.values())
        return {name: share / total for name, share in drawn.items()}

    def indices(
        self, run_seed: int, step: int, count: int, *, attempt: int, success: Mapping[str, float]
    ) -> list[int]:
        """Return the training examples of a step; `place` undoes the numbering.

        Args:
            run_seed: Seed of the run, >= 0.
            step: Step, >= 0.
            count: Examples to return, >= 1.
            attempt: Above 0 it gives further examples for the same step.
            success: The share of right samples of each part so far.

        Returns:
            Indices of `count` examples.
        """
        shares = self.shares(success)
        rng = random.Random(f"{run_seed}:{step}:{attempt}:curriculum")
        names = list(shares)
        drawn = rng.choices(range(len(names)), weights=list(shares.values()), k=count)
        found = []
        for place, part in enumerate(drawn):
            # Each place of each step has an example of its own in every part.
            size = self.sizes[names[part]]
            position = step * count + place
            (index,) = train_indices(run_seed, position, 1, size, attempt=attempt)
            found.append(index * len(names) + part)
        return found

    def place(self, index: int) -> tuple[str, int]:
        """Return the part of an example, and its number there."""
        number, part = divmod(index, len(self.weights))
        return list(self.weights)[part], number
