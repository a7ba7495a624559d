"""From per-token losses to a scalar: which tokens count how much.

Each function sums over the rows at hand and divides by a denominator of the WHOLE optimisation
batch, so micro-batches add up. Only `microbatch_token_mean` does not, and that is its point.
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
    """Return 1/num_sequences sum_i 1/|y_i| sum_t x_it: the mean over rows of means over tokens.

    Each row counts the same, so tokens of long rows count less. The policy gradient is biased when
    lengths vary. Source: DeepSeekMath, arXiv:2402.03300, eq. 3.
    """
    rows = keep(x, mask).sum(dim=1, keepdim=True) / lengths(mask)
    return rows.sum() / num_sequences


def sequence_sum(
    x: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], num_sequences: int
) -> Float[Tensor, ""]:
    """Return 1/num_sequences sum_i sum_t x_it: the plain policy gradient, unbiased at scale 1."""
    return keep(x, mask).sum() / num_sequences


def constant_length_mean(
    x: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], num_sequences: int, length: int
) -> Float[Tensor, ""]:
    """Return 1/(num_sequences * length) sum_i sum_t x_it: `sequence_sum` at a token mean's scale.

    Source: Dr. GRPO, arXiv:2503.20783, section 3.1.

    Args:
        x: one number a token.
        mask: tokens that count.
        num_sequences: rows of the whole optimisation batch, >= 1.
        length: the generation limit in tokens, >= 1.
    """
    return keep(x, mask).sum() / (num_sequences * length)


def microbatch_token_mean(
    x: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], num_sequences: int
) -> Float[Tensor, ""]:
    """Return the token mean of the rows at hand times their share of the sequences.

    TRL calls it bnpo. It depends on how the optimisation batch is split; unsplit it is
    `token_mean`.
    """
    rows = int(mask.any(dim=1).sum())
    return token_mean(x, mask, max(int(mask.sum()), 1)) * (rows / num_sequences)
