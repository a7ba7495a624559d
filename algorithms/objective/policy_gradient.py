"""GRPO, RLOO and PPO share this policy-gradient objective: axes in, pure functions out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlkit.algorithms.objective.aggregation import Aggregation, aggregate_of
from rlkit.algorithms.objective.base import AlgorithmConfig, Objective
from rlkit.algorithms.objective.correction import correction_weights
from rlkit.algorithms.objective.kl import KLPlacement, KLWeight
from rlkit.algorithms.objective.kl_terms import full_kl_spec, kl_loss, kl_metric
from rlkit.algorithms.objective.ratio import OldPolicy, RatioLevel
from rlkit.algorithms.objective.surrogate import (
    columns_of,
    old_logps_of,
    resolve_old,
    surrogate,
)
from rlkit.functional import high_entropy_mask, keep, token_mean
from rlkit.types import (
    Column,
    Idle,
    Loss,
    LossOutput,
    OutputSpec,
    PolicyOutput,
    Setting,
    TrainBatch,
)


@dataclass(kw_only=True, slots=True)
class PolicyGradientConfig(AlgorithmConfig):
    """Fields of algorithms whose loss is a surrogate of the policy gradient."""

    aggregation: Aggregation = Aggregation.sequence_mean
    """token_mean (DAPO, unsloth_2025); sequence_mean (DeepSeekMath); sequence_sum; constant_length
    (Dr. GRPO); microbatch_token_mean (TRL's bnpo). The KL term is aggregated the same way."""
    entropy_coef: float = 0.0
    """Coefficient of the entropy bonus, a token mean over the full vocabulary; < 0 lowers it."""
    entropy_fraction: float = 1.0
    """Share of tokens, those of highest entropy, that the policy loss uses; in (0, 1], 1 = all."""

    def check(self) -> None:
        AlgorithmConfig.check(self)
        if not abs(self.entropy_coef) < float("inf"):
            raise ValueError(f"algorithm.entropy_coef must be finite, got {self.entropy_coef}")
        if not 0.0 < self.entropy_fraction <= 1.0:
            raise ValueError(
                f"algorithm.entropy_fraction must be in (0, 1], got {self.entropy_fraction}"
            )


class PolicyGradient(NamedTuple):
    """A policy-gradient loss and what it needs, as fields of `rlkit.types.Algorithm`."""

    loss: Loss
    needs: frozenset[Column]
    outputs: OutputSpec
    idle: Idle | None
    """Rows without an advantage, where nothing but the surrogate has a gradient."""


def check_policy_gradient(objective: Objective[PolicyGradientConfig], old: OldPolicy) -> None:
    """Raise ValueError on combinations of axes that cannot work or have no effect."""
    cfg, ratio, correction = objective.algorithm, objective.ratio, objective.correction
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
    objective: Objective[PolicyGradientConfig], setting: Setting
) -> PolicyGradient:
    """Build the loss that the axes describe, with the columns and outputs that it needs.

    loss = aggregate(weight * surrogate) + beta * aggregate(KL) - entropy_coef * mean(entropy).

    Raises ValueError on combinations of axes that cannot work or have no effect.
    """
    cfg, kl, ratio = objective.algorithm, objective.kl, objective.ratio
    old = resolve_old(ratio, setting)
    check_policy_gradient(objective, old)
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
        per_token, metrics = _policy_term(objective, out, batch, old_logps)
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
    # A mean over the micro-batch's own tokens is another loss in another split.
    splits = cfg.aggregation is not Aggregation.microbatch_token_mean
    only_surrogate = not kl.in_loss and cfg.entropy_coef == 0.0
    idle = _without_advantage if splits and only_surrogate else None
    return PolicyGradient(loss, needs, outputs, idle)


def _without_advantage(batch: TrainBatch) -> Tensor:
    return (batch.advantages == 0.0).all(dim=1)


def _policy_term(
    objective: Objective[PolicyGradientConfig],
    out: PolicyOutput,
    batch: TrainBatch,
    old_logps: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted surrogate per token, and what it did as metrics."""
    cfg, mask, correction = objective.algorithm, batch.loss_mask, objective.correction
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
