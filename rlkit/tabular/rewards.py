"""This module puts the world's rewards behind the reward pool's interface, without processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from rlkit.tabular.world import TabularWorld
from rlkit.types import Completion


@dataclass(frozen=True, slots=True)
class TableScores:
    """These are the rewards of a batch; nothing can fail."""

    rewards: list[list[float]]
    failures: Mapping[str, int] = field(default_factory=dict)

    @property
    def components(self) -> list[list[tuple[float]]]:
        return [[(value,) for value in group] for group in self.rewards]

    def describe(self) -> list[str]:
        return []

    def metrics(self) -> dict[str, float]:
        return {}

    def shares(self) -> dict[str, tuple[float, float]]:
        return {}


@dataclass(frozen=True)
class TableRewards:
    """This object looks completions up in this process, because no code of a user's runs."""

    world: TabularWorld
    names: tuple[str, ...] = ("table",)
    weights: tuple[float, ...] = (1.0,)

    @cached_property
    def _by_words(self) -> list[dict[tuple[int, ...], float]]:
        tree = self.world.tree
        lengths = tree.mask.sum(dim=1).tolist()
        words = [tuple(ids[:n]) for ids, n in zip(tree.ids.tolist(), lengths, strict=True)]
        return [dict(zip(words, row, strict=True)) for row in self.world.rewards.tolist()]

    def score(self, groups: Sequence[Sequence[Completion]]) -> TableScores:
        """Return the reward of each completion of each group."""
        return TableScores([[self._by_words[c.prompt.index][c.ids] for c in g] for g in groups])
