"""Online DPO: preference pairs among fresh samples, labelled by the rewards.

arXiv:2402.04792 with the loss of arXiv:2305.18290. A pairwise judge is a reward function that
returns each sample's share of wins. XPO (arXiv:2405.21046) is the option `xpo_alpha`.
"""

from __future__ import annotations

import torch

from rlkit.algorithms.base import (
    GroupFilter,
    Objective,
    check_setting,
    loss_mask_of,
    shaped_rewards,
)
from rlkit.algorithms.correction import CorrectionConfig
from rlkit.algorithms.kl_terms import kl_metric
from rlkit.algorithms.online_dpo_config import OnlineDPOConfig, PreferenceLoss
from rlkit.algorithms.pairs import PairRule, TieRule, is_pair, pair_rows
from rlkit.algorithms.ratio import RatioConfig
from rlkit.functional import preference as F
from rlkit.functional.masks import keep, token_mean
from rlkit.types import (
    Algorithm,
    Column,
    LossOutput,
    OutputSpec,
    PolicyOutput,
    RolloutBatch,
    Setting,
    TrainBatch,
    with_denominators,
)


def online_dpo(cfg: OnlineDPOConfig, objective: Objective, setting: Setting) -> Algorithm:
    """The algorithm of `cfg`; raises `ValueError` on axes that a preference loss does not have."""
    check_setting(cfg, setting)
    _check_axes(cfg, objective)

    def prepare(rollout: RolloutBatch) -> TrainBatch:
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
        advantages = keep(sign.repeat(len(rows) // 2)[:, None].expand(mask.shape), mask)
        return with_denominators(
            TrainBatch(
                rollout=paired,
                loss_mask=mask,
                advantages=advantages,
                returns=None,
                num_tokens=1,
                num_sequences=1,
            )
        )

    return Algorithm(
        prepare=prepare,
        loss=lambda out, batch: pair_loss(cfg, out, batch),
        needs=frozenset({Column.ref_logps}),
        outputs=OutputSpec(entropy=True),
        rows_per_unit=2,
    )


def pair_loss(cfg: OnlineDPOConfig, out: PolicyOutput, batch: TrainBatch) -> LossOutput:
    """Mean preference loss over kept pairs, plus XPO's optimism over their rows."""
    mask, rollout = batch.loss_mask, batch.rollout
    if rollout.ref_logps is None:
        raise ValueError("online_dpo needs RolloutBatch.ref_logps")
    ref_logps, usable = rollout.ref_logps.detach(), mask.any(dim=1)
    pairs, num_pairs = usable[0::2], batch.num_sequences / 2
    h = F.margins(out.logps, ref_logps, mask)
    match cfg.loss:
        case PreferenceLoss.ipo:
            losses = F.ipo_loss(h, beta=cfg.beta)
        case PreferenceLoss.hinge:
            losses = F.hinge_loss(h, beta=cfg.beta)
        case _:
            losses = F.sigmoid_loss(h, beta=cfg.beta, label_smoothing=cfg.label_smoothing)
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
        bonus = F.optimism(
            out.logps, ref_logps, rollout.sampling_logps, mask, max_weight=cfg.xpo_max_weight
        )
        optimism = cfg.xpo_alpha * bonus.sum() / batch.num_sequences
        total = total + optimism
        metrics["loss/xpo"] = optimism.detach()
    return LossOutput(total, metrics)


def _check_axes(cfg: OnlineDPOConfig, objective: Objective) -> None:
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
