"""Choose the samples of a group that are compared, and what happens to ties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

import torch
from torch import Tensor

from rlkit.functional import best_worst_pair, neighbour_pairs, ranked_pairs


class PairRule(StrEnum):
    """The rows of a group that are compared."""

    best_worst = "best_worst"
    ranked = "ranked"
    neighbours = "neighbours"


class TieRule(StrEnum):
    """The fate of a pair whose rewards differ by no more than `min_gap`."""

    drop = "drop"
    first = "first"


class LabelRule(StrEnum):
    """The probability p that the chosen row of a pair is the better one, from its reward gap g."""

    hard = "hard"
    """p = 1."""
    wins = "wins"
    """p = (1 + g) / 2, at most 1: of shares of wins, where two rows have a judge's own p."""
    bradley_terry = "bradley_terry"
    """p = sigmoid(g): of a reward model's scores."""


def label_probabilities(rule: LabelRule, gaps: Tensor) -> Tensor:
    """Return (N) p for gaps >= 0 of N pairs; in [0.5, 1]."""
    match rule:
        case LabelRule.wins:
            return ((1.0 + gaps) / 2.0).clamp(max=1.0)
        case LabelRule.bradley_terry:
            return gaps.sigmoid()
        case _:
            return torch.ones_like(gaps)


_RULES: Mapping[PairRule, Callable[[Tensor], Tensor]] = {
    PairRule.best_worst: best_worst_pair,
    PairRule.ranked: ranked_pairs,
    PairRule.neighbours: neighbour_pairs,
}


def pair_rows(rule: PairRule, rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Return row indices of every group of adjacent rows, chosen and rejected in turn.

    A group of one row, whose others got no reward, gives that row twice. It is no pair to learn
    from, as `is_pair` tells, but a batch of such groups still has rows.
    """
    starts = torch.unique_consecutive(group_ids, return_counts=True)[1].cumsum(0).tolist()
    bounds = zip([0, *starts], starts, strict=False)
    alone = rewards.new_zeros(2, dtype=torch.long)
    return torch.cat([(_RULES[rule](rewards[a:b]) if b - a > 1 else alone) + a for a, b in bounds])


def is_pair(rows: Tensor) -> Tensor:
    """Tell (N) whether the N pairs that `pair_rows` chose are of two different rows."""
    return rows[0::2] != rows[1::2]
