"""This module measures bias and spread of switches, as rows of numbers for `docs/objective.md`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from rlkit.algorithms import CorrectionConfig, KLConfig, Objective, RatioConfig, build
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.algorithms.objective.advantage import AdvantageConfig, Baseline, Scale
from rlkit.algorithms.objective.aggregation import Aggregation
from rlkit.algorithms.objective.ratio import RatioLevel
from rlkit.oracle import targets
from rlkit.oracle.expectation import (
    Denominator,
    World,
    all_groups,
    derivatives,
    expected_gradient,
    expected_value,
    moments,
    world,
)
from rlkit.oracle.tree import logps_of, probabilities
from rlkit.types import Algorithm, KLDirection, Setting

CONF = Path(__file__).parents[1] / "conf"
PARAMETRISATIONS = ("tab", "tied")
NO_KL = KLConfig(direction=KLDirection.none, beta=0.0)

Config = TypeVar("Config")


class KLRow(NamedTuple):
    """This row is one KL switch in one world."""

    value_bias: float
    """E[value] - KL of its direction, over that KL."""
    errors: tuple[float, float, float]
    """|E[g] - t| / |t| for t = gradient of reverse KL of sequences, reverse per token, forward."""
    deviation: float
    """Standard deviation of the gradient over the norm of the reverse sequence KL's."""


class GradientRow(NamedTuple):
    """This row is one policy-gradient switch in one world, against -grad E[R]."""

    error: float
    cosine: float
    deviation: float


class GroupRow(NamedTuple):
    """This row is one way to compare the samples of a group, against -grad E[R]."""

    error: float
    length: float
    """|E[g]| over the length of the truth."""
    cosine: float


def load(group: str, name: str, node: type[Config]) -> Config:
    """Return the option `name` of a group whose schema is `node`."""
    values = cast(DictConfig, OmegaConf.load(CONF / group / f"{name}.yaml"))
    values.pop("defaults")
    return cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(node), values)))


def options(group: str) -> list[str]:
    """Return names of a group's files."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def raw_reward(aggregation: Aggregation = Aggregation.sequence_sum) -> GRPOConfig:
    """Return REINFORCE without a baseline, on groups of one."""
    return GRPOConfig(
        group_size=1,
        aggregation=aggregation,
        advantage=AdvantageConfig(baseline=Baseline.none, scale=Scale.none),
    )


def algorithm(
    cfg: GRPOConfig,
    *,
    kl: KLConfig = NO_KL,
    ratio: RatioConfig | None = None,
    correction: CorrectionConfig | None = None,
    updates: int = 1,
) -> Algorithm:
    """Return the algorithm of `cfg` with the other axes off unless given.

    Args:
        cfg: The configuration of the algorithm.
        kl: The KL term.
        ratio: The ratio and its clip; None is the default.
        correction: The weights against the sampler; None is the default.
        updates: Optimiser updates on one batch, >= 1.

    Returns:
        The pair of pure functions.
    """
    objective = Objective(cfg, kl, ratio or RatioConfig(), correction or CorrectionConfig())
    return build(objective, Setting(cfg.group_size, 3, updates, microbatched=False))


def kl_row(name: str, w: World, *, on_policy: bool) -> KLRow:
    """Return the row of `kl=name` alone: beta = 1, rewards 0, no clip.

    Off-policy, the completions are the old policy's.
    """
    w = w._replace(rewards=torch.zeros_like(w.rewards), turn_rewards=None)
    cfg = load("kl", name, KLConfig)
    cfg = replace(cfg, beta=1.0, top_k=None if cfg.top_k is None else 1)
    unclipped = load("ratio", "no_clip", RatioConfig)
    one = algorithm(raw_reward(), kl=cfg, ratio=unclipped, updates=1 if on_policy else 2)
    claims = (targets.reverse_sequence(w), targets.reverse_token(w), targets.forward_token(w))
    truths = [targets.gradient(w, claim) for claim in claims]
    result = moments(w, one)
    truth = claims[1 if cfg.direction is KLDirection.reverse else 2](w.table)
    value = expected_value(w, one) if cfg.in_loss else truth * torch.nan
    first, second, third = (targets.relative_error(result.gradient, t) for t in truths)
    return KLRow(
        float(value / truth - 1), (first, second, third), float(result.deviation / truths[0].norm())
    )


def gradient_row(w: World, one: Algorithm) -> GradientRow:
    """Return an algorithm on groups of one against the exact policy gradient."""
    truth = -targets.gradient(w, targets.expected_reward(w))
    result = moments(w, one)
    return GradientRow(
        targets.relative_error(result.gradient, truth),
        targets.cosine(result.gradient, truth),
        float(result.deviation / truth.norm()),
    )


def ratio_row(name: str, w: World, *, on_policy: bool) -> GradientRow:
    """Return `ratio=name` with raw rewards, summed over tokens (row by row for `sequence`)."""
    ratio = load("ratio", name, RatioConfig)
    whole = ratio.level is RatioLevel.sequence
    cfg = raw_reward(Aggregation.sequence_mean if whole else Aggregation.sequence_sum)
    updates = 1 if on_policy or not ratio.detach else 2
    one = algorithm(cfg, ratio=ratio, updates=updates)
    return gradient_row(w, one)


def correction_row(name: str, parametrisation: str) -> GradientRow:
    """Return `correction=name` when the sampler is far from the policy."""
    correction = load("correction", name, CorrectionConfig)
    one = algorithm(raw_reward(), correction=correction)
    return gradient_row(world(parametrisation=parametrisation, on_policy=False, drift=2.0), one)


def group_row(w: World, group_size: int, **axes: Any) -> GroupRow:
    """Return E[g] of a group against -grad E[R].

    `axes` are fields of the two configs.
    """
    one, denominator = _grouped(group_size, axes)
    got = expected_gradient(w, one, group_size=group_size, denominator=denominator)
    truth: Tensor = -targets.gradient(w, targets.expected_reward(w))
    return GroupRow(
        targets.relative_error(got, truth),
        float(got.norm() / truth.norm()),
        targets.cosine(got, truth),
    )


def group_deviation(w: World, group_size: int, **axes: Any) -> float:
    """Return the standard deviation of the gradient of a group over |grad E[R]|."""
    one, denominator = _grouped(group_size, axes)
    total = all_groups(w, one, group_size=group_size, denominator=denominator)
    scores = torch.func.jacrev(lambda theta: logps_of(w.tree, w.model.table(theta)))(w.theta)
    (cotangent,) = derivatives(w, one, total).values()  # of the logps: nothing else has a gradient
    rows = torch.einsum("rt,rtd->rd", cotangent, scores[total.sequence])
    groups = total.batch.rollout.group_ids
    chance = probabilities(w.tree, w.behaviour)[total.sequence].view(-1, group_size).prod(dim=1)
    weighted = total.row_weight[:, None] * rows
    each = weighted.new_zeros(len(chance), rows.shape[1]).index_add_(0, groups, weighted)
    # A row's weight has the probability of its group in it once.
    variance = (each.square().sum(dim=1) / chance).sum() - each.sum(dim=0).square().sum()
    truth = targets.gradient(w, targets.expected_reward(w))
    return float(variance.clamp(min=0.0).sqrt() / truth.norm())


def _grouped(group_size: int, axes: Mapping[str, Any]) -> tuple[Algorithm, Denominator]:
    aggregation = axes.get("aggregation", Aggregation.sequence_sum)
    of_advantage = {name: value for name, value in axes.items() if name != "aggregation"}
    cfg = GRPOConfig(
        group_size=group_size,
        aggregation=aggregation,
        advantage=AdvantageConfig(eps=0.0, bessel=False, **of_advantage),
    )
    by_tokens = aggregation is Aggregation.token_mean
    return algorithm(cfg), Denominator.tokens if by_tokens else Denominator.sequences
