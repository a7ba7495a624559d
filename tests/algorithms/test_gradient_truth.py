"""Every KL switch and every ratio: expected gradients over all completions, to 1e-10.

Two independent truths. (a) The coefficient of the score that the formula of each variant implies,
derived by hand and summed over the tree, for EVERY combination, biased ones included. (b) The
analytic gradient of the divergence that a variant claims to have, by autograd of exact sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from oracles import NO_KL, objective, setting
from torch import Tensor

from rlkit.algorithms import CorrectionConfig, KLConfig, RatioConfig, build
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.algorithms.objective.advantage import AdvantageConfig, Baseline, Scale
from rlkit.algorithms.objective.aggregation import Aggregation
from rlkit.algorithms.objective.correction import CorrectionLevel, CorrectionMode
from rlkit.algorithms.objective.kl import (
    ESTIMATORS,
    KLEstimator,
    KLGradient,
    KLHorizon,
    KLPlacement,
    KLWeight,
)
from rlkit.algorithms.objective.ratio import Clip, OldPolicy, RatioLevel
from rlkit.oracle import targets
from rlkit.oracle.episodes import episode_world
from rlkit.oracle.expectation import (
    Denominator,
    World,
    all_groups,
    expected_gradient,
    expected_value,
    moments,
    row_gradients,
    world,
)
from rlkit.oracle.tree import logps_of, probabilities
from rlkit.types import Algorithm, KLDirection

TOLERANCE = 1e-10
REVERSE, FORWARD = KLDirection.reverse, KLDirection.forward
KINDS = ("tab", "tied", "tab in turns", "tied in turns")
WORLDS = [(kind, on) for kind in KINDS for on in (True, False)]


def world_of(kind: str, *, on_policy: bool) -> World:
    """A world of single completions, or of episodes in which an environment takes part."""
    parametrisation, _, turns = kind.partition(" ")
    make = episode_world if turns else world
    return make(parametrisation=parametrisation, on_policy=on_policy)


def reinforce(**changes: object) -> GRPOConfig:
    """Raw rewards, summed over tokens: the objective whose gradient is the policy gradient."""
    cfg = GRPOConfig(
        group_size=1,
        aggregation=Aggregation.sequence_sum,
        advantage=AdvantageConfig(baseline=Baseline.none, scale=Scale.none),
    )
    return replace(cfg, **changes)  # type: ignore[arg-type]


def kl_only(kl: KLConfig, *, on_policy: bool) -> Algorithm:
    """The algorithm whose loss is the KL alone once rewards are zero; the ratio is unclipped."""
    ratio = RatioConfig(clip=Clip.none)
    updates = 1 if on_policy else 2
    return build(
        objective(reinforce(), kl=kl, ratio=ratio),
        setting(group_size=1, updates=updates, max_length=3),
    )


def kl_world(parametrisation: str, on_policy: bool) -> World:
    w = world_of(parametrisation, on_policy=on_policy)
    return w._replace(rewards=torch.zeros_like(w.rewards))


def score_sum(w: World, coefficient: Tensor) -> Tensor:
    """sum_y O(y) sum_t coefficient_t(y) grad log pi(y_t | prefix)."""
    scores = torch.func.jacrev(lambda t: logps_of(w.tree, w.model.table(t)))(w.theta)
    weight = probabilities(w.tree, w.behaviour)[:, None] * coefficient
    return torch.einsum("nt,ntd->d", weight.masked_fill(~w.tree.mask, 0.0), scores)


def values_by_hand(q: Tensor, p: Tensor) -> dict[tuple[KLDirection, KLEstimator], Tensor]:
    """f of every sampled estimator, written out again."""
    u = torch.exp(p - q)
    return {
        (REVERSE, KLEstimator.k1): -u.log(),
        (REVERSE, KLEstimator.k2): u.log() ** 2 / 2,
        (REVERSE, KLEstimator.k3): u - 1 - u.log(),
        (FORWARD, KLEstimator.k1): u * u.log(),
        (FORWARD, KLEstimator.k3): u * u.log() - u + 1,
        (REVERSE, KLEstimator.unsloth_full_reverse): q.exp() * (u - 1 - u.log()),
        (REVERSE, KLEstimator.unsloth_log_weighted): q * (u - 1 - u.log()),
        (FORWARD, KLEstimator.unsloth_forward): p.exp() * u.log(),
    }


def pathwise_by_hand(q: Tensor, p: Tensor) -> dict[tuple[KLDirection, KLEstimator], Tensor]:
    """df/dq of every sampled estimator, from du/dq = -u."""
    u = torch.exp(p - q)
    k3 = u - 1 - u.log()
    return {
        (REVERSE, KLEstimator.k1): torch.ones_like(u),
        (REVERSE, KLEstimator.k2): q - p,
        (REVERSE, KLEstimator.k3): 1 - u,
        (FORWARD, KLEstimator.k1): -u * (u.log() + 1),
        (FORWARD, KLEstimator.k3): -u * u.log(),
        (REVERSE, KLEstimator.unsloth_full_reverse): q.exp() * (q - p),
        (REVERSE, KLEstimator.unsloth_log_weighted): k3 + q * (1 - u),
        (FORWARD, KLEstimator.unsloth_forward): -p.exp(),
    }


def coefficient_by_hand(w: World, kl: KLConfig) -> Tensor:
    """The score's coefficient at each token that `kl` implies."""
    q, p = logps_of(w.tree, w.table), logps_of(w.tree, w.ref_table)
    o, mask = logps_of(w.tree, w.behaviour), w.tree.mask
    key = (kl.direction, kl.estimator)
    ratio = torch.exp(q - o)
    if kl.placement is not KLPlacement.loss:
        data = values_by_hand(o, p)[key].masked_fill(~mask, 0.0)
        if kl.placement is KLPlacement.reward:
            return ratio * data.sum(dim=1, keepdim=True)
        return ratio * torch.stack([data[:, t:].sum(dim=1) for t in range(data.shape[1])], dim=1)
    value = values_by_hand(q, p)[key].masked_fill(~mask, 0.0)
    coefficient = pathwise_by_hand(q, p)[key]
    if kl.gradient is KLGradient.score_function:
        coefficient = coefficient + value
    if kl.gradient is KLGradient.straight_through:
        coefficient = q - p if kl.direction is REVERSE else 1 - torch.exp(p - q)
    if kl.weight is KLWeight.old:
        coefficient = coefficient * ratio
    if kl.horizon is KLHorizon.sequence:
        later = [value[:, t + 1 :].sum(dim=1) for t in range(value.shape[1])]
        coefficient = coefficient + torch.stack(later, dim=1)
    return coefficient


def sampled_variants() -> Iterator[KLConfig]:
    """Every valid combination of direction, estimator, placement, gradient, weight and horizon."""
    axes = product(ESTIMATORS, KLPlacement, KLGradient, KLWeight, KLHorizon)
    for (direction, estimator), placement, gradient, weight, horizon in axes:
        try:
            yield KLConfig(
                direction=direction,
                estimator=estimator,
                placement=placement,
                gradient=gradient,
                weight=weight,
                horizon=horizon,
                beta=1.0,
            )
        except ValueError:
            continue


VARIANTS = list(sampled_variants())


def test_every_combination_is_covered() -> None:
    in_loss = [v for v in VARIANTS if v.placement is KLPlacement.loss]
    assert len(in_loss) == 5 * 3 * 2 * 2 + 3 * 2
    assert len(VARIANTS) - len(in_loss) == 8 * 2


@pytest.mark.parametrize(("parametrisation", "on_policy"), WORLDS)
def test_expected_gradient_of_every_variant_is_its_formula(
    parametrisation: str, on_policy: bool
) -> None:
    w = kl_world(parametrisation, on_policy)
    for kl in VARIANTS:
        got = expected_gradient(w, kl_only(kl, on_policy=on_policy))
        want = score_sum(w, coefficient_by_hand(w, kl))
        assert (got - want).norm() <= TOLERANCE, kl


Claim = Callable[[World], Callable[[Tensor], Tensor]]


def claimed_target(kl: KLConfig, *, on_policy: bool) -> Claim | None:
    """The divergence whose gradient `kl` has in expectation, or None."""
    if kl.placement is not KLPlacement.loss:
        exact = kl.direction is REVERSE and kl.estimator is KLEstimator.k1 and on_policy
        return targets.reverse_sequence if exact else None
    if kl.estimator.startswith("unsloth"):
        return None
    if not on_policy and kl.weight is KLWeight.none:
        return None
    key = (kl.direction, kl.estimator, kl.gradient)
    reverse = kl.direction is REVERSE
    if kl.gradient is KLGradient.straight_through:
        token: Claim | None = targets.reverse_token if reverse else targets.forward_token
    elif key == (REVERSE, KLEstimator.k2, KLGradient.pathwise):
        token = targets.reverse_token
    elif key == (REVERSE, KLEstimator.k3, KLGradient.pathwise):
        token = targets.forward_token
    elif kl.gradient is KLGradient.score_function and kl.estimator is not KLEstimator.k2:
        token = targets.reverse_token if reverse else targets.forward_token
    else:
        token = None
    if kl.horizon is KLHorizon.token:
        return token
    unbiased_value = kl.estimator in (KLEstimator.k1, KLEstimator.k3)
    if token is targets.reverse_token and unbiased_value and on_policy:
        return targets.reverse_sequence
    return None


@pytest.mark.parametrize(("parametrisation", "on_policy"), WORLDS)
def test_claims_about_divergences_are_exact_and_sharp(
    parametrisation: str, on_policy: bool
) -> None:
    """Claimed gradients agree to 1e-10; all others are off by more than 1% from all three."""
    w = kl_world(parametrisation, on_policy)
    truth = {
        claim: targets.gradient(w, claim(w))
        for claim in (targets.reverse_sequence, targets.reverse_token, targets.forward_token)
    }
    for kl in VARIANTS:
        got = expected_gradient(w, kl_only(kl, on_policy=on_policy))
        claim = claimed_target(kl, on_policy=on_policy)
        for target, gradient in truth.items():
            error = targets.relative_error(got, gradient)
            if target is claim:
                assert error <= TOLERANCE, (kl, target)
            else:
                assert error > 1e-2, (kl, target)


@pytest.mark.parametrize("parametrisation", KINDS)
def test_k1_in_the_loss_is_pure_noise_on_policy(parametrisation: str) -> None:
    w = kl_world(parametrisation, True)
    result = moments(w, kl_only(KLConfig(estimator=KLEstimator.k1, beta=1.0), on_policy=True))
    assert result.gradient.norm() <= 1e-14
    assert result.deviation > 0.3


@pytest.mark.parametrize(("parametrisation", "on_policy"), WORLDS)
@pytest.mark.parametrize("direction", [REVERSE, FORWARD])
def test_exact_kl_has_the_gradient_of_its_direction(
    parametrisation: str, on_policy: bool, direction: KLDirection
) -> None:
    w = kl_world(parametrisation, on_policy)
    kl = KLConfig(direction=direction, estimator=KLEstimator.exact, beta=1.0)
    algorithm = kl_only(kl, on_policy=on_policy)
    claim = targets.reverse_token if direction is REVERSE else targets.forward_token
    got = expected_gradient(w, algorithm)
    assert targets.relative_error(got, targets.gradient(w, claim(w))) <= TOLERANCE
    assert abs(expected_value(w, algorithm) - claim(w)(w.table)) <= TOLERANCE


@pytest.mark.parametrize("parametrisation", KINDS)
def test_exact_kl_with_sequence_horizon_is_the_best_sequence_kl(parametrisation: str) -> None:
    w = kl_world(parametrisation, True)
    exact = KLConfig(estimator=KLEstimator.exact, horizon=KLHorizon.sequence, beta=1.0)
    reward = KLConfig(estimator=KLEstimator.k1, placement=KLPlacement.reward, beta=1.0)
    results = [moments(w, kl_only(kl, on_policy=True)) for kl in (exact, reward)]
    truth = targets.gradient(w, targets.reverse_sequence(w))
    for result in results:
        assert targets.relative_error(result.gradient, truth) <= TOLERANCE
    assert results[0].deviation < 0.6 * results[1].deviation


@pytest.mark.parametrize("parametrisation", KINDS)
def test_values_of_unbiased_estimators_are_the_divergence(parametrisation: str) -> None:
    w = kl_world(parametrisation, True)
    reverse, forward = targets.reverse_sequence(w)(w.table), targets.forward_token(w)(w.table)
    for kl in VARIANTS:
        one_of_each = kl.weight is KLWeight.none and kl.horizon is KLHorizon.token
        if kl.placement is not KLPlacement.loss or not one_of_each:
            continue
        value = expected_value(w, kl_only(kl, on_policy=True))
        unbiased = kl.estimator in (KLEstimator.k1, KLEstimator.k3)
        truth = reverse if kl.direction is REVERSE else forward
        assert (abs(value - truth) <= TOLERANCE) == unbiased, kl


def policy_gradient(w: World) -> Tensor:
    return -targets.gradient(w, targets.expected_reward(w))


ON_POLICY_RATIOS = [
    RatioConfig(clip=Clip.none),
    RatioConfig(old=OldPolicy.current, clip=Clip.none),
    RatioConfig(old=OldPolicy.stored),
    RatioConfig(old=OldPolicy.sampler),
    RatioConfig(clip_high=0.28),
    RatioConfig(delta=4.0),
    RatioConfig(dual=3.0),
    RatioConfig(clip=Clip.cispo, clip_low=1.0, clip_high=4.0),
    RatioConfig(clip=Clip.sapo),
]


@pytest.mark.parametrize("parametrisation", KINDS)
def test_every_token_ratio_is_the_policy_gradient_on_policy(parametrisation: str) -> None:
    w = world_of(parametrisation, on_policy=True)
    for ratio in ON_POLICY_RATIOS:
        algorithm = build(objective(reinforce(), ratio=ratio), setting(group_size=1))
        got = expected_gradient(w, algorithm)
        assert targets.relative_error(got, policy_gradient(w)) <= TOLERANCE, ratio


@pytest.mark.parametrize("parametrisation", KINDS)
def test_detach_false_has_exactly_no_policy_gradient(parametrisation: str) -> None:
    for on_policy in (True, False):
        w = world_of(parametrisation, on_policy=on_policy)
        ratio = RatioConfig(old=OldPolicy.current, detach=False)
        algorithm = build(objective(reinforce(), ratio=ratio), setting(group_size=1))
        result = moments(w, algorithm)
        assert torch.equal(result.gradient, torch.zeros_like(result.gradient))
        assert float(result.deviation) == 0.0
        assert abs(float(expected_value(w, algorithm))) > 0.1


@pytest.mark.parametrize("parametrisation", KINDS)
def test_detach_false_never_leaves_the_reference(parametrisation: str) -> None:
    """With beta > 0 and policy = reference, as at the start of a LoRA run, nothing moves at all."""
    w = world_of(parametrisation, on_policy=True)
    w = w._replace(ref_table=w.table)
    ratio = RatioConfig(old=OldPolicy.current, detach=False)
    algorithm = build(objective(reinforce(), kl=KLConfig(), ratio=ratio), setting(group_size=1))
    result = moments(w, algorithm)
    assert float(result.gradient.norm()) == 0.0
    assert float(result.deviation) == 0.0


def test_probability_instead_of_ratio_weights_by_the_policy_twice() -> None:
    w = world(parametrisation="tied", on_policy=True)
    ratio = RatioConfig(old=OldPolicy.one, clip=Clip.none)
    got = expected_gradient(w, build(objective(reinforce(), ratio=ratio), setting(group_size=1)))
    q = logps_of(w.tree, w.table).exp()
    assert (got - score_sum(w, -q * w.rewards[:, None])).norm() <= TOLERANCE
    assert targets.relative_error(got, policy_gradient(w)) > 0.3


@pytest.mark.parametrize("parametrisation", KINDS)
@pytest.mark.parametrize("on_policy", [True, False])
def test_sequence_ratio_is_unbiased_on_and_off_policy(
    parametrisation: str, on_policy: bool
) -> None:
    w = world_of(parametrisation, on_policy=on_policy)
    ratio = RatioConfig(level=RatioLevel.sequence, old=OldPolicy.stored, clip=Clip.none)
    cfg = reinforce(aggregation=Aggregation.sequence_mean)
    got = moments(w, build(objective(cfg, ratio=ratio), setting(group_size=1, updates=2)))
    assert targets.relative_error(got.gradient, policy_gradient(w)) <= TOLERANCE


@pytest.mark.parametrize("parametrisation", KINDS)
def test_token_ratios_are_biased_off_policy_as_their_formula_says(parametrisation: str) -> None:
    """A = R >= 0, so a clip only acts above 1 + high; coefficients are written out by hand."""
    w = world_of(parametrisation, on_policy=False)
    ratio = torch.exp(logps_of(w.tree, w.table) - logps_of(w.tree, w.behaviour))
    rewards = w.rewards[:, None]
    cases = [
        (RatioConfig(clip=Clip.none, old=OldPolicy.current), torch.ones_like(ratio)),
        (RatioConfig(clip=Clip.none), ratio),
        (RatioConfig(), torch.where(ratio > 1.2, 0.0, ratio)),
        (RatioConfig(clip=Clip.cispo, clip_low=1.0, clip_high=0.1), ratio.clamp(max=1.1)),
        (RatioConfig(clip=Clip.sapo), 4 * ratio * _slope(ratio - 1)),
    ]
    for config, weight in cases:
        algorithm = build(objective(reinforce(), ratio=config), setting(group_size=1, updates=2))
        got = expected_gradient(w, algorithm)
        assert (got - score_sum(w, -weight * rewards)).norm() <= TOLERANCE, config
        assert targets.relative_error(got, policy_gradient(w)) > 1e-2, config


def _slope(x: Tensor) -> Tensor:
    """Derivative of the logistic function."""
    return torch.exp(-x) / (1 + torch.exp(-x)) ** 2


@pytest.mark.parametrize("parametrisation", KINDS)
def test_gspo_and_gmpo_are_sequence_mean_grpo_on_policy(parametrisation: str) -> None:
    w = world_of(parametrisation, on_policy=True)
    cfg = reinforce(aggregation=Aggregation.sequence_mean)
    reference = expected_gradient(w, build(objective(cfg), setting(group_size=1)))
    for ratio in (
        RatioConfig(level=RatioLevel.sequence_mean, clip_low=3e-4, clip_high=4e-4),
        RatioConfig(level=RatioLevel.sequence_mean_token, clip_low=3e-4, clip_high=4e-4),
        RatioConfig(level=RatioLevel.sequence_mean, clip=Clip.gmpo),
    ):
        got = expected_gradient(w, build(objective(cfg, ratio=ratio), setting(group_size=1)))
        assert (got - reference).norm() <= TOLERANCE, ratio
    assert targets.relative_error(reference, policy_gradient(w)) > 0.05


@pytest.mark.parametrize("parametrisation", KINDS)
def test_sequence_correction_undoes_a_different_sampler(parametrisation: str) -> None:
    """The sampler draws from `behaviour`, the trainer is on-policy: plain sequence weights are
    unbiased, token weights and cut weights are not."""
    w = world_of(parametrisation, on_policy=False)
    exact = CorrectionConfig(
        mode=CorrectionMode.truncate, level=CorrectionLevel.sequence, high=float("inf")
    )
    biased = [
        CorrectionConfig(),
        CorrectionConfig(mode=CorrectionMode.truncate, level=CorrectionLevel.token, high=2.0),
        CorrectionConfig(mode=CorrectionMode.mask, level=CorrectionLevel.sequence, high=0.9),
    ]
    for correction in [exact, *biased]:
        algorithm = build(objective(reinforce(), correction=correction), setting(group_size=1))
        got = expected_gradient(w, algorithm)
        error = targets.relative_error(got, policy_gradient(w))
        assert (error <= TOLERANCE) == (correction is exact), (correction, error)


def test_entropy_bonus_has_the_gradient_of_the_entropy() -> None:
    w = world(parametrisation="tied", on_policy=True)
    w = w._replace(rewards=torch.zeros_like(w.rewards))
    algorithm = build(
        objective(reinforce(entropy_coef=0.7), kl=NO_KL), setting(group_size=1, max_length=3)
    )
    got = expected_gradient(w, algorithm)

    def entropy(table: Tensor) -> Tensor:
        per_state = -(table.exp() * table).sum(dim=-1)
        tokens = per_state[w.tree.states].masked_fill(~w.tree.mask, 0.0)
        return (probabilities(w.tree, w.behaviour)[:, None] * tokens).sum()

    assert targets.relative_error(got, -0.7 * targets.gradient(w, entropy)) <= TOLERANCE


def test_monte_carlo_agrees_with_the_enumeration() -> None:
    """100 000 drawn completions, through the same algorithm: within 4 standard errors."""
    w = world(parametrisation="tied", on_policy=False)
    algorithm = build(
        objective(reinforce(), kl=KLConfig(beta=0.5)), setting(group_size=1, updates=2)
    )
    exact = moments(w, algorithm)
    generator = torch.Generator().manual_seed(0)
    draws = probabilities(w.tree, w.behaviour).multinomial(100_000, True, generator=generator)
    share = torch.bincount(draws, minlength=len(w.tree)) / 100_000
    total = all_groups(w, algorithm, group_size=1, denominator=Denominator.sequences)
    rows = share.to(torch.float64)[:, None] * row_gradients(w, algorithm, total)
    error = (rows.sum(dim=0) - exact.gradient).norm()
    assert 0.0 < float(error) < 4 * float(exact.deviation) / 100_000**0.5
