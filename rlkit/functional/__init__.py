"""One small pure function per estimator: tensors in, tensors out, nothing of rlkit imported.

Everything is importable from here: `from rlkit.functional import clipped_surrogate_loss, gae`.
Dimensions: B sequences, C completion tokens (padded), N pairs or tokens. A mask is bool, True =
keep, and what it hides never reaches a result or a gradient. Functions whose name ends in `_loss`
return numbers to minimise; logps are log-probabilities in nats.
"""

from rlkit.functional.advantages import (
    batch_mean_advantages,
    batch_std,
    divide_by_std,
    gdpo_advantages,
    group_mean_advantages,
    group_std,
    informative_groups,
    leave_one_out_advantages,
    whiten_tokens,
)
from rlkit.functional.aggregation import (
    constant_length_mean,
    microbatch_token_mean,
    sequence_mean,
    sequence_sum,
)
from rlkit.functional.clips import (
    cispo_loss,
    clipped_mean_log_ratio,
    clipped_surrogate_loss,
    sapo_loss,
    surrogate_loss,
)
from rlkit.functional.correction import (
    effective_sample_size,
    mask_weights,
    sampler_log_ratio,
    sampling_mismatch,
    truncate_weights,
)
from rlkit.functional.kl import (
    forward_k1,
    forward_k3,
    reverse_k1,
    reverse_k2,
    reverse_k3,
    sequence_kl_term,
    straight_through,
    times_live_ratio,
    unsloth_forward,
    unsloth_full_reverse,
    unsloth_log_weighted,
)
from rlkit.functional.masks import future_sum, keep, lengths, sum_to_go, token_mean
from rlkit.functional.preference import (
    best_worst_pair,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    neighbour_pairs,
    preference_margins,
    ranked_pairs,
    xpo_optimism_loss,
)
from rlkit.functional.ratios import (
    importance_ratio,
    log_ratio,
    mean_log_ratio,
    mean_log_ratio_per_token,
    sequence_log_ratio,
)
from rlkit.functional.shaping import high_entropy_mask, overlong_penalty
from rlkit.functional.turns import spread_turns, turn_sums, turns_reached, turns_to_go
from rlkit.functional.values import GAE, explained_variance, gae, terminal_rewards, value_loss

__all__ = [
    "GAE",
    "batch_mean_advantages",
    "batch_std",
    "best_worst_pair",
    "cispo_loss",
    "clipped_mean_log_ratio",
    "clipped_surrogate_loss",
    "constant_length_mean",
    "divide_by_std",
    "dpo_loss",
    "effective_sample_size",
    "explained_variance",
    "forward_k1",
    "forward_k3",
    "future_sum",
    "gae",
    "gdpo_advantages",
    "group_mean_advantages",
    "group_std",
    "high_entropy_mask",
    "hinge_loss",
    "importance_ratio",
    "informative_groups",
    "ipo_loss",
    "keep",
    "leave_one_out_advantages",
    "lengths",
    "log_ratio",
    "mask_weights",
    "mean_log_ratio",
    "mean_log_ratio_per_token",
    "microbatch_token_mean",
    "neighbour_pairs",
    "overlong_penalty",
    "preference_margins",
    "ranked_pairs",
    "reverse_k1",
    "reverse_k2",
    "reverse_k3",
    "sampler_log_ratio",
    "sampling_mismatch",
    "sapo_loss",
    "sequence_kl_term",
    "sequence_log_ratio",
    "sequence_mean",
    "sequence_sum",
    "spread_turns",
    "straight_through",
    "sum_to_go",
    "surrogate_loss",
    "terminal_rewards",
    "times_live_ratio",
    "token_mean",
    "truncate_weights",
    "turn_sums",
    "turns_reached",
    "turns_to_go",
    "unsloth_forward",
    "unsloth_full_reverse",
    "unsloth_log_weighted",
    "value_loss",
    "whiten_tokens",
    "xpo_optimism_loss",
]
