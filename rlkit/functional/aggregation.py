"""From per-token losses to a scalar: which tokens count how much.

Each is a sum over the rows at hand divided by a denominator of the WHOLE optimisation batch, so
micro-batches add up, except for `microbatch_token_mean`, whose point is that they do not.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from rlkit.functional.masks import keep, lengths, token_mean

__all__ = [
    "constant_length_mean",
    "microbatch_token_mean",
    "sequence_mean",
    "sequence_sum",
    "token_mean",
]


def sequence_mean(
    x: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], num_sequences: int
) -> Float[Tensor, ""]:
    """1/num_sequences sum_i 1/|y_i| sum_t x_it. Each row counts the same; long rows' tokens less.

    Source: DeepSeekMath, arXiv:2402.03300, eq. 3. Biased policy gradient when lengths vary.
    """
    rows = keep(x, mask).sum(dim=1, keepdim=True) / lengths(mask)
    return rows.sum() / num_sequences


def sequence_sum(
    x: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], num_sequences: int
) -> Float[Tensor, ""]:
    """1/num_sequences sum_i sum_t x_it: the plain policy gradient, unbiased at scale 1."""
    return keep(x, mask).sum() / num_sequences


def constant_length_mean(
    x: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], num_sequences: int, length: int
) -> Float[Tensor, ""]:
    """1/(num_sequences * length) sum_i sum_t x_it: `sequence_sum` at the scale of a token mean.

    Source: Dr. GRPO, arXiv:2503.20783, section 3.1 (`length` = the generation limit).
    """
    return keep(x, mask).sum() / (num_sequences * length)


def microbatch_token_mean(
    x: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], num_sequences: int
) -> Float[Tensor, ""]:
    """Token mean over the rows at hand, weighted by their share of the sequences.

    What TRL calls bnpo: depends on how the optimisation batch is split. Unsplit it is `token_mean`.
    """
    rows = int(mask.any(dim=1).sum())
    return token_mean(x, mask, max(int(mask.sum()), 1)) * (rows / num_sequences)
