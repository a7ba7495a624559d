"""Take rows of a padded batch under a mask, and back: masked tokens are never computed."""

from __future__ import annotations

from jaxtyping import Bool, Shaped
from torch import Tensor


def compact(x: Shaped[Tensor, "B C *D"], mask: Bool[Tensor, "B C"]) -> Shaped[Tensor, "N *D"]:
    """Return the rows of `x` where `mask` is True, in row-major order; differentiable in `x`.

    Equal to `x[mask]`, whose gradient sorts its indices; this one's adds distinct rows.
    """
    return x.flatten(0, 1).index_select(0, mask.flatten().nonzero().squeeze(1))


def spread(values: Shaped[Tensor, " N"], mask: Bool[Tensor, "B C"]) -> Shaped[Tensor, "B C"]:
    """Undo `compact` for one value per row: zeros where `mask` is False."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
