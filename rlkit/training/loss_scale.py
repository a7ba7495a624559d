"""The factor on the loss that keeps float16 gradients in range; float32 and bfloat16 need none.

The factor is a power of two, so that it changes no digit.

Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.
"""

from __future__ import annotations

from typing import NamedTuple

_GROW_EVERY = 50
"""Far fewer updates than the 2000 of supervised training: an RL run has hundreds."""


class LossScale(NamedTuple):
    """It shrinks when a gradient overflows and grows after updates in which none did."""

    value: float = 1.0
    limit: float = 1.0
    """The most it grows to; 1 = no scaling."""
    clean_updates: int = 0
    """Updates without overflow since it last changed."""

    def smaller(self) -> LossScale:
        """Return the scale to try after an overflow."""
        return LossScale(max(1.0, self.value / 8), self.limit)

    def after_update(self) -> LossScale:
        """Return the scale after an update without overflow."""
        if self.clean_updates + 1 < _GROW_EVERY or self.value >= self.limit:
            return self._replace(clean_updates=self.clean_updates + 1)
        return LossScale(min(self.limit, self.value * 2), self.limit)


UNSCALED = LossScale()
FLOAT16 = LossScale(value=2.0**16, limit=2.0**24)
"""A policy that computes in float16 starts at this scale."""
