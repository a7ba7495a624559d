"""Add a divergence of the `kl` group as a term of the loss, of the reward or of the advantage."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rlkit.algorithms.objective.kl import (
    ESTIMATORS,
    KLConfig,
    KLGradient,
    KLHorizon,
    KLPlacement,
    KLWeight,
)
from rlkit.functional import (
    importance_ratio,
    keep,
    log_ratio,
    reverse_k2,
    reverse_k3,
    sequence_kl_term,
    straight_through,
    sum_to_go,
    times_live_ratio,
)
from rlkit.types import FullKL, KLDirection, PolicyOutput, RolloutBatch, TrainBatch

_UNBIASED_GRADIENT: Mapping[KLDirection, Callable[[Tensor, Tensor], Tensor]] = {
    KLDirection.reverse: reverse_k2,
    KLDirection.forward: reverse_k3,
}


def sampled_kl(cfg: KLConfig, logps: Tensor, ref_logps: Tensor, mask: Tensor) -> Tensor:
    """Return the estimator's value per token, differentiable as it stands.

    Args:
        cfg: the group `kl`, with an estimator of sampled tokens.
        logps: the policy's, nats.
        ref_logps: the reference's, nats.
        mask: tokens that count; the result is 0.0 elsewhere.
    """
    value = ESTIMATORS[cfg.direction, cfg.estimator]
    return keep(value(keep(logps, mask), keep(ref_logps, mask)), mask)


def full_kl_spec(cfg: KLConfig) -> FullKL | None:
    """Say which KL over the vocabulary the policy's forward pass has to compute for `cfg`."""
    if cfg.enabled and cfg.full_vocabulary:
        return FullKL(cfg.direction, cfg.top_k)
    return None


def kl_loss(cfg: KLConfig, out: PolicyOutput, batch: TrainBatch, old_logps: Tensor) -> Tensor:
    """Return the per-token KL term of the loss, before beta, with the gradient that `cfg` names.

    Args:
        cfg: the group `kl`, placed in the loss.
        out: the policy's outputs.
        batch: rows of an optimisation batch.
        old_logps: the denominator's logps, for `weight=old`.

    Raises:
        ValueError: the trainer has not filled a column or an output that it needs.
    """
    mask = batch.loss_mask
    logps = keep(out.logps, mask)
    if cfg.full_vocabulary:
        if out.full_kl is None:
            raise ValueError(f"kl.estimator={cfg.estimator} needs PolicyOutput.full_kl")
        value = term = keep(out.full_kl, mask)
    else:
        ref_logps = ref_of(batch, mask)
        value = term = sampled_kl(cfg, logps, ref_logps, mask)
        if cfg.gradient is KLGradient.straight_through:
            term = straight_through(value, _UNBIASED_GRADIENT[cfg.direction](logps, ref_logps))
    if cfg.gradient is KLGradient.score_function:
        base = keep(old_logps, mask).detach() if cfg.weight is KLWeight.old else logps.detach()
        term = times_live_ratio(value, logps - base)
    elif cfg.weight is KLWeight.old:
        term = importance_ratio(log_ratio(logps, old_logps, mask)).detach() * term
    if cfg.horizon is KLHorizon.sequence:
        term = term + sequence_kl_term(value, logps, mask)
    return term


def ref_of(batch: TrainBatch, mask: Tensor) -> Tensor:
    """Return the reference's logps, masked and detached.

    It raises when the trainer has not filled them.
    """
    ref_logps = batch.rollout.ref_logps
    if ref_logps is None:
        raise ValueError("this objective needs RolloutBatch.ref_logps")
    return keep(ref_logps.detach(), mask)


@torch.no_grad()
def kl_metric(out: PolicyOutput, batch: TrainBatch) -> Tensor | None:
    """Return k3 against the reference, summed over tokens, over the batch's number of tokens."""
    if batch.rollout.ref_logps is None:
        return None
    mask = batch.loss_mask
    return reverse_k3(keep(out.logps, mask), ref_of(batch, mask)).sum() / batch.num_tokens


def kl_per_token(cfg: KLConfig, rollout: RolloutBatch) -> Tensor:
    """Return beta * KL estimate per completion token from stored old logps, without gradient."""
    if rollout.old_logps is None or rollout.ref_logps is None:
        raise ValueError(f"kl.placement={cfg.placement} needs old_logps and ref_logps in the batch")
    mask = rollout.completion_mask
    return cfg.beta * sampled_kl(cfg, rollout.old_logps.detach(), rollout.ref_logps.detach(), mask)


def with_advantage_kl(cfg: KLConfig, rollout: RolloutBatch, advantages: Tensor) -> Tensor:
    """Subtract the KL-to-go of each token from `advantages` (B C), if the KL belongs there."""
    if not cfg.enabled or cfg.placement is not KLPlacement.advantage:
        return advantages
    return advantages - sum_to_go(kl_per_token(cfg, rollout), rollout.completion_mask)
