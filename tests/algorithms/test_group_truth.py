"""Group baselines, critics and pairs: expected gradients over all groups of completions."""

from __future__ import annotations

import inspect
import math
import textwrap
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import objective, setting
from torch import Tensor

from rlkit import types
from rlkit.algorithms import CorrectionConfig, KLConfig, Objective, RatioConfig, build
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.algorithms.objective.advantage import AdvantageConfig, Baseline, Scale
from rlkit.algorithms.objective.aggregation import Aggregation
from rlkit.algorithms.objective.kl import KLEstimator, KLPlacement
from rlkit.algorithms.objective.pairs import LabelRule, PairRule, TieRule
from rlkit.algorithms.objective.ratio import RatioLevel
from rlkit.algorithms.online_dpo import OnlineDPOConfig, PreferenceLoss
from rlkit.algorithms.ppo import PPOConfig
from rlkit.algorithms.rloo import RLOOConfig
from rlkit.oracle import targets
from rlkit.oracle.expectation import Denominator, World, expected_gradient, world
from rlkit.oracle.tree import logps_of, probabilities
from rlkit.types import Algorithm, RolloutBatch, TrainBatch

TOLERANCE = 1e-10


def grouped(
    baseline: Baseline, scale: Scale, *, group_size: int, bessel: bool = False, eps: float = 0.0
) -> Algorithm:
    advantage = AdvantageConfig(baseline=baseline, scale=scale, eps=eps, bessel=bessel)
    cfg = GRPOConfig(
        group_size=group_size, aggregation=Aggregation.sequence_sum, advantage=advantage
    )
    return build(objective(cfg), setting(group_size=group_size))


def reward_gradient(w: World) -> Tensor:
    return targets.gradient(w, targets.expected_reward(w))


def example_in(docstring: str | None) -> dict[str, Any]:
    """Return the names that the indented code in a docstring defines."""
    code = [line for line in inspect.cleandoc(docstring or "").splitlines() if line[:4] == "    "]
    names = vars(types).copy()
    exec(textwrap.dedent("\n".join(code)), names)  # our own docstring
    return names


@pytest.mark.parametrize("parametrisation", ["tab", "tied"])
def test_the_examples_in_the_docstrings_are_reinforce(parametrisation: str) -> None:
    w = world(parametrisation=parametrisation, on_policy=True)
    prepare = example_in(types.Prepare.__doc__)["prepare"]
    loss = example_in(types.Loss.__doc__)["loss"]
    got = expected_gradient(w, Algorithm(prepare=prepare, loss=loss))
    assert targets.relative_error(got, -reward_gradient(w)) <= TOLERANCE


def std_weight(p: float, group_size: int) -> float:
    """c_G(p): E[GRPO gradient] = c_G(p) grad p for binary rewards, population standard deviation.

    sum_k C(G-1, k) p^k (1-p)^(G-1-k) [a1(k+1) - a0(k)] with a1(m) = sqrt((G-m)/m) the advantage of
    a right and a0(m) = -sqrt(m/(G-m)) of a wrong sample when m of G are right.
    """

    def right(m: int) -> float:
        return math.sqrt((group_size - m) / m)

    def wrong(m: int) -> float:
        return -math.sqrt(m / (group_size - m))

    n = group_size - 1
    return sum(
        math.comb(n, k) * p**k * (1 - p) ** (n - k) * (right(k + 1) - wrong(k))
        for k in range(n + 1)
    )


@pytest.mark.parametrize(
    ("p", "weights"),
    [(0.01, (1.73, 2.61, 6.74)), (0.1, (1.69, 2.33, 3.255)), (0.5, (1.62, 1.86, 1.98))],
)
def test_published_weights_of_grpo_by_success_rate(p: float, weights: tuple[float, ...]) -> None:
    for group_size, want in zip((4, 8, 64), weights, strict=True):
        assert abs(std_weight(p, group_size) - want) < 0.005


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_grpo_reweights_prompts_by_their_success_rate(group_size: int) -> None:
    w = world(parametrisation="tied", on_policy=True)
    p = float(targets.expected_reward(w)(w.table))
    got = expected_gradient(
        w,
        grouped(Baseline.group_mean, Scale.group_std, group_size=group_size),
        group_size=group_size,
    )
    want = -std_weight(p, group_size) * reward_gradient(w)
    assert targets.relative_error(got, want) <= TOLERANCE
    bessel = grouped(Baseline.group_mean, Scale.group_std, group_size=group_size, bessel=True)
    shrunk = expected_gradient(w, bessel, group_size=group_size)
    factor = math.sqrt((group_size - 1) / group_size)
    assert targets.relative_error(shrunk, factor * want) <= TOLERANCE


@pytest.mark.parametrize("parametrisation", ["tab", "tied"])
@pytest.mark.parametrize("group_size", [2, 3])
def test_leave_one_out_is_unbiased_and_the_group_mean_shrinks(
    parametrisation: str, group_size: int
) -> None:
    w = world(parametrisation=parametrisation, on_policy=True)
    truth = -reward_gradient(w)
    for baseline, factor in (
        (Baseline.leave_one_out, 1.0),
        (Baseline.group_mean, (group_size - 1) / group_size),
        (Baseline.none, 1.0),
    ):
        algorithm = grouped(baseline, Scale.none, group_size=group_size)
        got = expected_gradient(w, algorithm, group_size=group_size)
        assert targets.relative_error(got, factor * truth) <= TOLERANCE, baseline


def test_standard_deviation_turns_the_gradient_for_graded_rewards() -> None:
    w = world(parametrisation="tied", on_policy=True)
    w = w._replace(rewards=torch.linspace(-1.0, 1.0, len(w.tree), dtype=torch.float64) ** 3)
    algorithm = grouped(Baseline.group_mean, Scale.group_std, group_size=3)
    got = expected_gradient(w, algorithm, group_size=3)
    assert 0.9 < targets.cosine(got, -reward_gradient(w)) < 1.0 - 1e-4


def test_length_division_turns_the_gradient() -> None:
    """sequence_sum and constant_length keep the direction; token_mean turns it a little,
    sequence_mean more."""
    w = world(parametrisation="tab", on_policy=True)
    cosines = {}
    for kind, denominator in (
        (Aggregation.sequence_sum, Denominator.sequences),
        (Aggregation.constant_length, Denominator.sequences),
        (Aggregation.token_mean, Denominator.tokens),
        (Aggregation.sequence_mean, Denominator.sequences),
    ):
        cfg = GRPOConfig(
            group_size=2,
            aggregation=kind,
            advantage=AdvantageConfig(baseline=Baseline.leave_one_out, scale=Scale.none),
        )
        algorithm = build(objective(cfg), setting(group_size=2, max_length=3))
        got = expected_gradient(w, algorithm, group_size=2, denominator=denominator)
        cosines[kind] = targets.cosine(got, -reward_gradient(w))
        if kind is Aggregation.constant_length:
            assert targets.relative_error(3 * got, -reward_gradient(w)) <= TOLERANCE
    assert abs(cosines[Aggregation.sequence_sum] - 1.0) <= TOLERANCE
    assert abs(cosines[Aggregation.constant_length] - 1.0) <= TOLERANCE
    assert cosines[Aggregation.sequence_mean] < cosines[Aggregation.token_mean] < 1.0 - 1e-4


@pytest.mark.parametrize("parametrisation", ["tab", "tied"])
@pytest.mark.parametrize(
    ("level", "aggregation"),
    [
        (RatioLevel.sequence, Aggregation.sequence_mean),
        (RatioLevel.token, Aggregation.sequence_sum),
    ],
)
def test_rloo_is_the_gradient_of_reward_minus_sequence_kl(
    parametrisation: str, level: RatioLevel, aggregation: Aggregation
) -> None:
    w = world(parametrisation=parametrisation, on_policy=True)
    kl = KLConfig(estimator=KLEstimator.k1, placement=KLPlacement.reward, beta=0.3)
    cfg = RLOOConfig(group_size=2, aggregation=aggregation)
    algorithm = build(
        Objective(cfg, kl, RatioConfig(level=level), CorrectionConfig()), setting(group_size=2)
    )
    got = expected_gradient(w, algorithm, group_size=2)
    penalty = targets.gradient(w, targets.reverse_sequence(w))
    assert targets.relative_error(got, 0.3 * penalty - reward_gradient(w)) <= TOLERANCE


@pytest.mark.parametrize("placement", [KLPlacement.reward, KLPlacement.advantage])
def test_kl_before_or_after_normalisation(placement: KLPlacement) -> None:
    """After the division the penalty keeps its strength; before, the group's std rescales it."""
    w = world(parametrisation="tied", on_policy=True)
    kl = KLConfig(estimator=KLEstimator.k1, placement=placement, beta=0.3)
    cfg = GRPOConfig(
        group_size=2,
        aggregation=Aggregation.sequence_sum,
        advantage=AdvantageConfig(eps=0.0, bessel=False),
    )
    got = expected_gradient(w, build(objective(cfg, kl=kl), setting(group_size=2)), group_size=2)
    p = float(targets.expected_reward(w)(w.table))
    penalty = targets.gradient(w, targets.reverse_sequence(w))
    want = 0.3 * penalty - std_weight(p, 2) * reward_gradient(w)
    error = targets.relative_error(got, want)
    assert (error <= TOLERANCE) == (placement is KLPlacement.advantage)


def with_values(w: World, algorithm: Algorithm, values: Tensor) -> Algorithm:
    """`algorithm` on batches whose critic's values are `values` (N, T)."""

    def prepare(rollout: RolloutBatch) -> TrainBatch:
        return algorithm.prepare(replace(rollout, values=values[rollout.prompt_ids[:, 0]]))

    return algorithm._replace(prepare=prepare)


def true_values(w: World) -> Tensor:
    """(N, T) expected reward given the prefix, from the tree."""
    chance = probabilities(w.tree, w.table)
    result = torch.zeros(w.tree.mask.shape, dtype=torch.float64)
    for n in range(len(w.tree)):
        for t in range(int(w.tree.mask[n].sum())):
            same = (w.tree.ids[:, :t] == w.tree.ids[n, :t]).all(dim=1) & w.tree.mask[:, t]
            result[n, t] = (chance * w.rewards)[same].sum() / chance[same].sum()
    return result


@pytest.mark.parametrize("parametrisation", ["tab", "tied"])
@pytest.mark.parametrize("lam", [1.0, 0.95, 0.5, 0.0])
def test_ppo_is_unbiased_with_lam_1_or_the_exact_critic(parametrisation: str, lam: float) -> None:
    w = world(parametrisation=parametrisation, on_policy=True)
    cfg = PPOConfig(group_size=1, aggregation=Aggregation.sequence_sum, lam=lam, whiten=False)
    algorithm = build(objective(cfg), setting(group_size=1))
    exact = true_values(w)
    wrong = torch.sin(7.0 * exact + torch.arange(3)).masked_fill(~w.tree.mask, 0.0)
    errors = [
        targets.relative_error(
            expected_gradient(w, with_values(w, algorithm, values)), -reward_gradient(w)
        )
        for values in (exact, wrong)
    ]
    assert errors[0] <= TOLERANCE
    assert (errors[1] <= TOLERANCE) == (lam == 1.0)


def test_ppo_penalty_through_the_advantage_estimate_is_the_sequence_kl() -> None:
    w = world(parametrisation="tied", on_policy=True)
    kl = KLConfig(estimator=KLEstimator.k1, placement=KLPlacement.reward, beta=0.3)
    cfg = PPOConfig(group_size=1, aggregation=Aggregation.sequence_sum, lam=1.0, whiten=False)
    algorithm = build(objective(cfg, kl=kl), setting(group_size=1))
    got = expected_gradient(w, with_values(w, algorithm, true_values(w)))
    penalty = targets.gradient(w, targets.reverse_sequence(w))
    assert targets.relative_error(got, 0.3 * penalty - reward_gradient(w)) <= TOLERANCE


def dpo(**changes: object) -> Algorithm:
    cfg = replace(OnlineDPOConfig(group_size=2), **changes)  # type: ignore[arg-type]
    return build(objective(cfg), setting(group_size=2))


def test_online_dpo_at_the_reference_is_beta_times_rloo() -> None:
    """Binary rewards, two samples, policy = reference: the same gradient, group by group."""
    w = world(parametrisation="tied", on_policy=True)
    w = w._replace(ref_table=w.table)
    rloo = grouped(Baseline.leave_one_out, Scale.none, group_size=2)
    got = expected_gradient(w, dpo(beta=0.3), group_size=2)
    want = 0.3 * expected_gradient(w, rloo, group_size=2)
    assert targets.relative_error(got, want) <= TOLERANCE


@pytest.mark.parametrize(
    ("loss", "smoothing"),
    [*((loss, 0.0) for loss in PreferenceLoss), (PreferenceLoss.sigmoid, 0.1)],
)
@pytest.mark.parametrize("ties", list(TieRule))
def test_online_dpo_is_its_loss_over_all_pairs(
    loss: PreferenceLoss, ties: TieRule, smoothing: float
) -> None:
    """Against a double loop over completions with the sampling distribution held fixed."""
    w = world(parametrisation="tab", on_policy=False)
    beta = 0.7
    chance = probabilities(w.tree, w.behaviour)

    def objective_by_hand(table: Tensor) -> Tensor:
        margin = (logps_of(w.tree, table) - logps_of(w.tree, w.ref_table)).sum(dim=1)
        total = torch.zeros((), dtype=torch.float64)
        for i in range(len(w.tree)):
            for j in range(len(w.tree)):
                if w.rewards[i] == w.rewards[j] and ties is TieRule.drop:
                    continue
                chosen, rejected = (i, j) if w.rewards[i] >= w.rewards[j] else (j, i)
                h = margin[chosen] - margin[rejected]
                total = total + chance[i] * chance[j] * by_hand(loss, h, beta, smoothing)
        return total

    got = expected_gradient(
        w, dpo(beta=beta, loss=loss, ties=ties, label_smoothing=smoothing), group_size=2
    )
    want = targets.gradient(w, objective_by_hand)
    assert targets.relative_error(got, want) <= TOLERANCE


def by_hand(loss: PreferenceLoss, h: Tensor, beta: float, smoothing: float) -> Tensor:
    if loss is PreferenceLoss.sigmoid:
        chosen = torch.log(1 / (1 + torch.exp(-beta * h)))
        return -(1 - smoothing) * chosen - smoothing * (chosen - beta * h)
    if loss is PreferenceLoss.ipo:
        return (h - 0.5 / beta) ** 2
    return torch.relu(1 - beta * h)


@pytest.mark.parametrize("labels", [LabelRule.wins, LabelRule.bradley_terry])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_online_dpo_with_soft_labels_is_the_cross_entropy_over_all_pairs(
    labels: LabelRule, smoothing: float
) -> None:
    """Every ordered pair, its label from the rewards' gap by hand, without choosing a winner."""
    w = world(parametrisation="tab", on_policy=False)
    w = w._replace(rewards=torch.linspace(-0.4, 0.55, len(w.tree), dtype=torch.float64).sin())
    beta, chance = 0.7, probabilities(w.tree, w.behaviour)

    def objective_by_hand(table: Tensor) -> Tensor:
        margin = (logps_of(w.tree, table) - logps_of(w.tree, w.ref_table)).sum(dim=1)
        total = torch.zeros((), dtype=torch.float64)
        for i in range(len(w.tree)):
            for j in range(len(w.tree)):
                gap = float(w.rewards[i] - w.rewards[j])
                p = 0.5 + gap / 2 if labels is LabelRule.wins else 1 / (1 + math.exp(-gap))
                p = p * (1 - smoothing) + (1 - p) * smoothing
                h = beta * (margin[i] - margin[j])
                cross_entropy = -p * torch.log(torch.sigmoid(h)) - (1 - p) * torch.log(
                    torch.sigmoid(-h)
                )
                total = total + chance[i] * chance[j] * cross_entropy
        return total

    algorithm = dpo(beta=beta, labels=labels, ties=TieRule.first, label_smoothing=smoothing)
    got = expected_gradient(w, algorithm, group_size=2)
    assert targets.relative_error(got, targets.gradient(w, objective_by_hand)) <= TOLERANCE


def test_xpo_bonus_is_the_reference_cross_entropy() -> None:
    """Uncapped weights, every sample used: the gradient of alpha * E_ref[log pi]."""
    w = world(parametrisation="tied", on_policy=False)
    changes: dict[str, object] = {"ties": TieRule.first, "pairs": PairRule.neighbours}
    plain = expected_gradient(w, dpo(**changes), group_size=2)
    bonus = dpo(xpo_alpha=0.4, xpo_max_weight=float("inf"), **changes)
    got = expected_gradient(w, bonus, group_size=2) - plain
    reference = probabilities(w.tree, w.ref_table)
    want = targets.gradient(w, lambda table: (reference * logps_of(w.tree, table).sum(dim=1)).sum())
    assert targets.relative_error(got, 0.4 * want) <= TOLERANCE
