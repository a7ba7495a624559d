"""A request to stop ends the wait for reward functions, which may hang until their deadline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlkit.rewards.pool import RewardPool
from rlkit.rewards.scores import Scores
from rlkit.training.stopping import StopRequest
from rlkit.types import Completion


@dataclass(frozen=True, slots=True)
class StoppableRewards:
    """The pool of reward functions of a run that can be asked to stop."""

    pool: RewardPool
    stop: StopRequest

    @property
    def names(self) -> Sequence[str]:
        """Return the names of the functions."""
        return self.pool.names

    @property
    def weights(self) -> Sequence[float]:
        """Return the weights of the functions."""
        return self.pool.weights

    def score(self, groups: Sequence[Sequence[Completion]]) -> Scores:
        """Score as the pool does; raises Interrupted within a second of the request."""
        return self.pool.score(groups, check=self.stop.check)
