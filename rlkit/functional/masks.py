"""Masked arithmetic: values under a False mask never reach a result or a gradient."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor


def keep(x: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """Return `x` where `mask`, else 0.0 with zero gradient, whatever `x` holds there (NaN
    included).
    """
    return x.masked_fill(~mask, 0.0)


def lengths(mask: Bool[Tensor, "B C"]) -> Int[Tensor, "B 1"]:
    """Return the number of kept tokens of each row, at least 1, so that it can divide."""
    return mask.sum(dim=1, keepdim=True).clamp(min=1)


def token_mean(
    x: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], num_tokens: int
) -> Float[Tensor, ""]:
    """Return sum(x[mask]) / num_tokens, with the denominator of the whole optimisation batch."""
    return keep(x, mask).sum() / num_tokens


def future_sum(x: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """Return sum_{t' > t} x_{t'} over kept tokens of the row: the part that token t can change."""
    return sum_to_go(x, mask) - keep(x, mask)


def sum_to_go(x: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """Return sum_{t' >= t} x_{t'} over kept tokens of the row; 0.0 where `mask` is False."""
    return keep(keep(x, mask).flip(1).cumsum(1).flip(1), mask)
