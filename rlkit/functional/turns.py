"""Sums over the turns of an episode: K turns, of which a row may have had fewer."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlkit.functional.masks import keep

Tokens = Float[Tensor, "B C"]
Turns = Float[Tensor, "B K"]


def turn_sums(x: Tokens, turn_ids: Int[Tensor, "B C"], mask: Bool[Tensor, "B C"]) -> Turns:
    """Return the sum of `x` over the kept tokens of each turn, 0.0 for turns that a row lacks."""
    sums = x.new_zeros(x.shape[0], num_turns(turn_ids, mask))
    return sums.scatter_add(1, keep_ids(turn_ids, mask), keep(x, mask))


def turns_reached(turn_ids: Int[Tensor, "B C"], mask: Bool[Tensor, "B C"]) -> Bool[Tensor, "B K"]:
    """Tell which turns each row has: those with a kept token."""
    ones = torch.ones(mask.shape, dtype=torch.get_default_dtype(), device=mask.device)
    return turn_sums(ones, turn_ids, mask) > 0


def turns_to_go(x: Turns) -> Turns:
    """Return sum_{k' >= k} x_{k'}: what is still to come at the start of turn k."""
    return x.flip(1).cumsum(1).flip(1)


def spread_turns(x: Turns, turn_ids: Int[Tensor, "B C"], mask: Bool[Tensor, "B C"]) -> Tokens:
    """Return each turn's number at all of its kept tokens, 0.0 elsewhere."""
    return keep(x.gather(1, keep_ids(turn_ids, mask)), mask)


def num_turns(turn_ids: Int[Tensor, "B C"], mask: Bool[Tensor, "B C"]) -> int:
    """Return K, the most turns that a row has, at least 1."""
    return int(keep_ids(turn_ids, mask).max()) + 1 if mask.numel() else 1


def keep_ids(turn_ids: Int[Tensor, "B C"], mask: Bool[Tensor, "B C"]) -> Int[Tensor, "B C"]:
    """Return the turns of kept tokens, and turn 0 elsewhere, whatever stands there."""
    return turn_ids.masked_fill(~mask, 0)
