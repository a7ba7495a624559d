"""The rollout buffer: scored groups wait here between generation and training. No tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from rlkit.types import ScoredRollout

Group = tuple[ScoredRollout, ...]
"""All scored samples of one prompt; never split."""


class RolloutBuffer:
    """First-in first-out queue of groups, bounded in staleness.

    A group is stale when its oldest rollout was sampled more than `max_staleness` policy versions
    before the policy that would train on it; stale groups are dropped and counted.
    """

    def __init__(self, *, max_staleness: int = 0) -> None:
        if max_staleness < 0:
            raise ValueError(f"max_staleness must be >= 0, got {max_staleness}")
        self._groups: deque[Group] = deque()
        self._max_staleness = max_staleness
        self.num_stale = 0
        """Groups dropped as stale so far."""

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, groups: Iterable[Sequence[ScoredRollout]]) -> None:
        """Append groups. Raises ValueError on an empty group: it has no prompt to learn from."""
        for group in groups:
            if not group:
                raise ValueError("a group must hold at least one rollout, got none")
            self._groups.append(tuple(group))

    def take(self, num_groups: int, *, policy_version: int) -> list[Group]:
        """Remove and return the `num_groups` oldest fresh groups; ValueError if there are fewer."""
        age = self._age
        fresh = deque(g for g in self._groups if age(g, policy_version) <= self._max_staleness)
        self.num_stale += len(self._groups) - len(fresh)
        self._groups = fresh
        if len(fresh) < num_groups:
            raise ValueError(f"buffer holds {len(fresh)} fresh groups, {num_groups} were asked for")
        return [fresh.popleft() for _ in range(num_groups)]

    @staticmethod
    def _age(group: Group, policy_version: int) -> int:
        return policy_version - min(sample.rollout.policy_version for sample in group)
