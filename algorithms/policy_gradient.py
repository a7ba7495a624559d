"""The policy-gradient objective that GRPO, RLOO and PPO share: axes in, pure functions out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlkit.algorithms.aggregation import Aggregation, aggregate_of
from rlkit.algorithms.base import Objective, PolicyGradientConfig
from rlkit.algorithms.correction import correction_weights
from rlkit.algorithms.kl import KLPlacement, KLWeight
from rlkit.algorithms.kl_terms import full_kl_spec, kl_loss, kl_metric
from rlkit.algorithms.ratio import OldPolicy, RatioLevel
from rlkit.algorithms.surrogate import columns_of, old_logps_of, resolve_old, surrogate
from rlkit.functional.masks import keep, token_mean
from rlkit.functional.shaping import high_entropy_mask
from rlkit.types import (
    Column,
    LossOutput,
    OutputSpec,
    PolicyOutput,
    Setting,
    TrainBatch,
)

Loss = Callable[[PolicyOutput, TrainBatch], LossOutput]


def check_policy_gradient(cfg: PolicyGradientConfig, objective: Objective, old: OldPolicy) -> None:
    """Raise on combinations of axes that cannot work or have no effect."""
    ratio, correction = objective.ratio, objective.correction
    if objective.kl.weight is KLWeight.old and old is OldPolicy.one:
        raise ValueError(
            "kl.weight=old needs an old policy; ratio.old=one is none: set ratio=token"
        )
    if correction.enabled and old in (OldPolicy.sampler, OldPolicy.one):
        raise ValueError(
            f"correction.mode={correction.mode} needs the trainer's own old logps, got "
            f"ratio.old={old}; set correction=none or ratio.old=auto"
        )
    if ratio.level is RatioLevel.sequence and cfg.aggregation is not Aggregation.sequence_mean:
        raise ValueError(
            "ratio.level=sequence is one ratio for the whole row: set "
            f"algorithm.aggregation=sequence_mean, which counts it once, got {cfg.aggregation}"
        )


def policy_gradient_loss(
    cfg: PolicyGradientConfig, objective: Objective, setting: Setting
) -> tuple[Loss, frozenset[Column], OutputSpec]:
    """The loss, the columns it needs and the outputs it needs.

    loss = aggregate(weight * surrogate) + beta * aggregate(KL) - entropy_coef * mean(entropy).
    """
    kl, ratio = objective.kl, objective.ratio
    old = resolve_old(ratio, setting)
    check_policy_gradient(cfg, objective, old)
    if cfg.entropy_fraction < 1.0 and setting.microbatched:
        raise ValueError(
            f"algorithm.entropy_fraction must be 1 with micro-batching, got "
            f"{cfg.entropy_fraction}: its quantile depends on the split; set memory=unsplit"
        )
    aggregate = aggregate_of(cfg.aggregation, setting)

    def loss(out: PolicyOutput, batch: TrainBatch) -> LossOutput:
        mask = batch.loss_mask
        logps = keep(out.logps, mask)
        old_logps = keep(old_logps_of(ratio, old, logps, batch.rollout), mask)
        per_token, metrics = _policy_term(cfg, objective, out, batch, old_logps)
        terms = {"loss/policy": aggregate(per_token, batch)}
        if kl.in_loss:
            terms["loss/kl"] = kl.beta * aggregate(kl_loss(kl, out, batch, old_logps), batch)
        if cfg.entropy_coef != 0.0:
            bonus = token_mean(_entropy(out), mask, batch.num_tokens)
            terms["loss/entropy"] = -cfg.entropy_coef * bonus
        metrics |= {name: term.detach() for name, term in terms.items()}
        return LossOutput(torch.stack(list(terms.values())).sum(), metrics)

    needs = columns_of(old) | ({Column.ref_logps} if kl.enabled else frozenset())
    if kl.enabled and kl.placement is not KLPlacement.loss:
        needs |= {Column.old_logps}
    outputs = OutputSpec(
        entropy=True, entropy_grad=cfg.entropy_coef != 0.0, full_kl=full_kl_spec(kl)
    )
    return loss, needs, outputs


def _policy_term(
    cfg: PolicyGradientConfig,
    objective: Objective,
    out: PolicyOutput,
    batch: TrainBatch,
    old_logps: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted surrogate per token, and what it did as metrics."""
    mask, correction = batch.loss_mask, objective.correction
    advantages = keep(batch.advantages.detach(), mask)
    policy = surrogate(objective.ratio, keep(out.logps, mask), old_logps, advantages, mask)
    per_token, metrics = policy.loss, _metrics(out, batch, advantages)
    clipped = {"low": policy.low, "high": policy.high, "region": policy.low | policy.high}
    for name, hit in clipped.items():
        metrics[f"clip_ratio/{name}_mean"] = hit.sum() / batch.num_tokens
    if correction.enabled:
        weights = correction_weights(correction, old_logps, batch.rollout.sampling_logps, mask)
        per_token = per_token * weights
        weights = weights.expand_as(per_token)
        metrics["correction/weight_mean"] = token_mean(weights, mask, batch.num_tokens)
    if cfg.entropy_fraction < 1.0:
        kept = high_entropy_mask(_entropy(out), mask, fraction=cfg.entropy_fraction)
        per_token = keep(per_token, kept)
    return per_token, metrics


def _entropy(out: PolicyOutput) -> Tensor:
    if out.entropy is None:
        raise ValueError("this objective needs PolicyOutput.entropy")
    return out.entropy


@torch.no_grad()
def _metrics(out: PolicyOutput, batch: TrainBatch, advantages: Tensor) -> dict[str, Tensor]:
    mask = batch.loss_mask
    metrics = {"pg_signal": token_mean(advantages.abs(), mask, batch.num_tokens)}
    kl = kl_metric(out, batch)
    if kl is not None:
        metrics["kl"] = kl
    if out.entropy is not None:
        metrics["entropy"] = token_mean(out.entropy, mask, batch.num_tokens)
    return metrics
