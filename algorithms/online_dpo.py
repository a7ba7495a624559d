"""Online DPO learns from preference pairs among fresh samples, labelled by the rewards.

Papers: arXiv:2402.04792, with the loss of arXiv:2305.18290. A pairwise judge is a reward function
that returns each sample's share of wins. XPO (arXiv:2405.21046) is the option `xpo_alpha`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from rlkit.algorithms.objective.base import (
    AlgorithmConfig,
    GroupFilter,
    Objective,
    check_setting,
    loss_mask_of,
    shaped_rewards,
)
from rlkit.algorithms.objective.correction import CorrectionConfig
from rlkit.algorithms.objective.kl_terms import kl_metric
from rlkit.algorithms.objective.pairs import (
    LabelRule,
    PairRule,
    TieRule,
    is_pair,
    label_probabilities,
    pair_rows,
)
from rlkit.algorithms.objective.ratio import RatioConfig
from rlkit.functional import (
    dpo_loss,
    hinge_loss,
    ipo_loss,
    keep,
    preference_margins,
    token_mean,
    xpo_optimism_loss,
)
from rlkit.types import (
    Algorithm,
    Column,
    LossOutput,
    OutputSpec,
    PolicyOutput,
    RolloutBatch,
    Setting,
    TrainBatch,
)


class PreferenceLoss(StrEnum):
    """This is the loss of a pair's margin; its formulas are in `rlkit.functional.preference`."""

    sigmoid = "sigmoid"
    ipo = "ipo"
    hinge = "hinge"


@dataclass(kw_only=True, slots=True)
class OnlineDPOConfig(AlgorithmConfig):
    """Direct preference optimisation on the policy's own samples."""

    beta: float = 0.1
    """Strength of the implicit KL to the reference, > 0. DPO and TRL: 0.1."""
    loss: PreferenceLoss = PreferenceLoss.sigmoid
    """sigmoid (DPO); ipo; hinge."""
    label_smoothing: float = 0.0
    """Probability that a label is wrong, in [0, 0.5); loss=sigmoid only (conservative DPO)."""
    labels: LabelRule = LabelRule.hard
    """hard; wins: a judge's probability is the label (`reward=judge`, exact with group_size=2);
    bradley_terry: the sigmoid of a reward model's gap. The last two with loss=sigmoid only."""
    pairs: PairRule = PairRule.best_worst
    """best_worst: one pair a group; ranked: best with worst, second with second worst, ...;
    neighbours: rows 0 and 1, 2 and 3, ... (TRL, which has 2 rows)."""
    ties: TieRule = TieRule.drop
    """drop: equal rewards teach nothing; first: the earlier row is chosen and trained on (TRL)."""
    min_gap: float = 0.0
    """A pair whose rewards differ by at most this is a tie, >= 0."""
    missing_eos_penalty: float = 0.0
    """Taken from the reward of completions that hit the length limit, >= 0. TRL: off."""
    xpo_alpha: float = 0.0
    """Coefficient of XPO's optimism, >= 0; 0 = off. TRL's XPO: 1e-5."""
    xpo_max_weight: float = 10.0
    """Cap of the weight ref/sampler that stands in for samples of the reference, > 0."""

    def check(self) -> None:
        AlgorithmConfig.check(self)
        if not 0.0 < self.beta < float("inf"):
            raise ValueError(f"algorithm.beta must be > 0, got {self.beta}")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"algorithm.label_smoothing must be in [0, 0.5), got {self.label_smoothing}"
            )
        if self.label_smoothing > 0.0 and self.loss is not PreferenceLoss.sigmoid:
            raise ValueError(
                f"algorithm.label_smoothing has no effect with algorithm.loss={self.loss}; "
                "set algorithm.loss=sigmoid or label_smoothing=0"
            )
        if self.labels is not LabelRule.hard and self.loss is not PreferenceLoss.sigmoid:
            raise ValueError(
                f"algorithm.labels must be hard with algorithm.loss={self.loss}, got {self.labels}"
            )
        for name in ("min_gap", "missing_eos_penalty", "xpo_alpha"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"algorithm.{name} must be >= 0, got {getattr(self, name)}")
        if not self.xpo_max_weight > 0.0:
            raise ValueError(f"algorithm.xpo_max_weight must be > 0, got {self.xpo_max_weight}")


def online_dpo(objective: Objective[OnlineDPOConfig], setting: Setting) -> Algorithm:
    """Build online DPO for a run with these facts.

    Raises ValueError on axes that a preference loss does not have.
    """
    cfg = objective.algorithm
    check_setting(cfg, setting)
    _check_axes(objective)

    def prepare(rollout: RolloutBatch) -> TrainBatch:
        """Return rows as chosen, rejected, chosen, ...; the advantage is +-(2 p - 1)."""
        rewards = shaped_rewards(cfg, setting, rollout)
        rewards = rewards - cfg.missing_eos_penalty * rollout.truncated.to(rewards.dtype)
        rows = pair_rows(cfg.pairs, rewards, rollout.group_ids)
        paired, kept = rollout.rows(rows), rewards[rows]
        mask = loss_mask_of(cfg, rollout)[rows]
        gap = kept[0::2] - kept[1::2]
        usable = (gap > cfg.min_gap) if cfg.ties is TieRule.drop else ~gap.isnan()
        usable &= mask[0::2].any(dim=1) & mask[1::2].any(dim=1) & is_pair(rows)
        mask = mask & usable.repeat_interleave(2)[:, None]
        sign = torch.tensor([1.0, -1.0], dtype=rewards.dtype, device=rewards.device)
        surplus = 2.0 * label_probabilities(cfg.labels, gap.nan_to_num()) - 1.0
        signed = sign.repeat(len(rows) // 2) * surplus.repeat_interleave(2)
        advantages = signed[:, None].expand(mask.shape)
        return TrainBatch.prepared(paired, loss_mask=mask, advantages=advantages)

    return Algorithm(
        prepare=prepare,
        loss=lambda out, batch: pair_loss(cfg, out, batch),
        needs=frozenset({Column.ref_logps}),
        outputs=OutputSpec(entropy=True),
        rows_per_unit=2,
    )


def pair_loss(cfg: OnlineDPOConfig, out: PolicyOutput, batch: TrainBatch) -> LossOutput:
    """Return the mean preference loss over kept pairs, plus XPO's optimism over their rows."""
    mask, rollout = batch.loss_mask, batch.rollout
    if rollout.ref_logps is None:
        raise ValueError("online_dpo needs RolloutBatch.ref_logps")
    ref_logps, usable = rollout.ref_logps.detach(), mask.any(dim=1)
    pairs, num_pairs = usable[0::2], batch.num_sequences / 2
    # The advantage of the chosen row holds the label: it is 2 p - 1 on each of its tokens.
    labels = (1.0 + batch.advantages[0::2].amax(dim=1)) / 2.0
    losses = _preference_loss(cfg, preference_margins(out.logps, ref_logps, mask), labels)
    total = losses.masked_fill(~pairs, 0.0).sum() / num_pairs
    rows = cfg.beta * (keep(out.logps, mask) - keep(ref_logps, mask)).detach().sum(dim=1)
    metrics = {
        "loss/policy": total.detach(),
        "rewards/chosen": rows[0::2].sum() / num_pairs,
        "rewards/rejected": rows[1::2].sum() / num_pairs,
        "rewards/margins": (rows[0::2] - rows[1::2]).sum() / num_pairs,
        "rewards/accuracies": ((rows[0::2] > rows[1::2]) & pairs).sum() / num_pairs,
        "pg_signal": token_mean(batch.advantages.detach().abs(), mask, batch.num_tokens),
    }
    kl = kl_metric(out, batch)
    if kl is not None:
        metrics["kl"] = kl
    if out.entropy is not None:
        metrics["entropy"] = token_mean(out.entropy.detach(), mask, batch.num_tokens)
    if cfg.xpo_alpha > 0.0:
        bonus = xpo_optimism_loss(
            out.logps, ref_logps, rollout.sampling_logps, mask, max_weight=cfg.xpo_max_weight
        )
        optimism = cfg.xpo_alpha * bonus.sum() / batch.num_sequences
        total = total + optimism
        metrics["loss/xpo"] = optimism.detach()
    return LossOutput(total, metrics)


def _preference_loss(cfg: OnlineDPOConfig, margins: Tensor, labels: Tensor) -> Tensor:
    match cfg.loss:
        case PreferenceLoss.ipo:
            return ipo_loss(margins, beta=cfg.beta)
        case PreferenceLoss.hinge:
            return hinge_loss(margins, beta=cfg.beta)
        case _:
            smoothing = cfg.label_smoothing
            if cfg.labels is LabelRule.hard:
                return dpo_loss(margins, beta=cfg.beta, label_smoothing=smoothing)
            wrong = (1.0 - labels) * (1.0 - smoothing) + labels * smoothing
            return dpo_loss(margins, beta=cfg.beta, label_smoothing=wrong)


def _check_axes(objective: Objective[OnlineDPOConfig]) -> None:
    cfg = objective.algorithm
    if cfg.group_size < 2:
        raise ValueError(
            f"algorithm.group_size must be >= 2 with algorithm=online_dpo, got {cfg.group_size}"
        )
    if objective.kl.enabled:
        raise ValueError(
            f"kl.direction must be none with algorithm=online_dpo, got {objective.kl.direction}; "
            "set kl=none: algorithm.beta is its KL strength"
        )
    if objective.ratio != RatioConfig():
        raise ValueError("algorithm=online_dpo has no importance ratio; set ratio=token")
    if objective.correction != CorrectionConfig():
        raise ValueError("algorithm=online_dpo has no sampler weights; set correction=none")
    if cfg.group_filter is GroupFilter.mask and cfg.ties is TieRule.first:
        raise ValueError(
            "algorithm.group_filter=mask contradicts algorithm.ties=first; set ties=drop"
        )
    if cfg.xpo_alpha > 0.0 and cfg.group_size > 2 and cfg.pairs is PairRule.best_worst:
        raise ValueError(
            "algorithm.xpo_alpha needs all samples, not the best and worst: set "
            "algorithm.pairs=neighbours or group_size=2"
        )
