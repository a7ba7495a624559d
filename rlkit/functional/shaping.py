"""Length and entropy shaping: overlong penalty, entropy mask."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def overlong_penalty(
    completion_mask: Bool[Tensor, "B C"], *, max_length: int, buffer: float, scale: float
) -> Float[Tensor, " B"]:
    """Return 0 up to max_length - buffer tokens, then linearly down to -scale at max_length.

    It is added to the reward. Source: soft overlong punishment, DAPO, arXiv:2503.14476, eq. 13.

    Args:
        completion_mask: the sampled tokens.
        max_length: the generation limit, tokens.
        buffer: length of the slope, tokens, > 0.
        scale: penalty at the limit, >= 0. DAPO: 1.
    """
    length = completion_mask.sum(dim=1).to(torch.get_default_dtype())
    return -scale * ((length - (max_length - buffer)) / buffer).clamp(0.0, 1.0)


def high_entropy_mask(
    entropy: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], *, fraction: float
) -> Bool[Tensor, "B C"]:
    """Return the kept tokens whose entropy reaches the (1 - fraction) quantile of all kept ones.

    It depends on all rows at hand, so it is not invariant under micro-batching. Source: "Beyond the
    80/20 rule", arXiv:2506.01939 (fraction 0.2).
    """
    if not bool(mask.any()):
        return mask
    threshold = torch.quantile(entropy.detach()[mask], 1 - fraction)
    return mask & (entropy.detach() >= threshold)
