"""Each rank computes its share of a batch's rows; the sums over the ranks are the whole batch.

Losses are sums over denominators that the whole batch fixes, so that gradients only add.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from rlkit.ranks import Ranks
from rlkit.types import Column


def whole_columns(
    columns: Mapping[Column, Tensor], needs: Collection[Column], like: Tensor, ranks: Ranks
) -> dict[Column, Tensor]:
    """Return the columns of all rows, which every rank filled for its own.

    Args:
        columns: The columns (B C), zero in the rows of other ranks; a rank without rows has none.
        needs: The columns that exist.
        like: A tensor of their shape, dtype and device.
        ranks: The ranks of the run.

    Returns:
        The columns that `needs` names.
    """
    whole = {c: columns[c] if c in columns else torch.zeros_like(like) for c in sorted(needs)}
    ranks.add(list(whole.values()))
    return whole


def whole_gradients(
    leaves: Sequence[Tensor], logps: Tensor, ranks: Ranks, owners: Sequence[int]
) -> None:
    """Put into each leaf's `.grad`, and into `logps` (B C), the sum over the ranks.

    Args:
        leaves: The tensors that train.
        logps: Of all rows, zero in those of other ranks.
        ranks: The ranks of the run.
        owners: The rank that keeps each leaf: it alone gets the sum, and others have no gradient
            any more. Empty = all ranks get it.
    """
    if ranks.size == 1:
        return
    gradients = []
    for leaf in leaves:
        # A rank without rows, or a leaf that no row of its reached, adds zeros.
        leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        gradients.append(leaf.grad)
    if not owners:
        ranks.add([*gradients, logps])
        return
    ranks.add_at(owners, gradients)
    ranks.add([logps])
    for leaf, owner in zip(leaves, owners, strict=True):
        leaf.grad = leaf.grad if owner == ranks.rank else None
