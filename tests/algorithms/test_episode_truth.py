"""Episodes of several turns: every way to credit a turn, over all episodes and all groups.

The truth is autograd of the expected sum of rewards, environment and all. KL terms, ratios and
corrections on the same worlds are in `test_gradient_truth`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracles import objective, setting
from torch import Tensor

from rlkit.algorithms import CorrectionConfig, KLConfig, Objective, RatioConfig, build
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.algorithms.objective.advantage import AdvantageConfig, Baseline, Scale, TurnCredit
from rlkit.algorithms.objective.aggregation import Aggregation
from rlkit.algorithms.objective.kl import KLEstimator, KLPlacement
from rlkit.algorithms.objective.ratio import RatioLevel
from rlkit.algorithms.online_dpo import OnlineDPOConfig
from rlkit.algorithms.ppo import PPOConfig
from rlkit.algorithms.rloo import RLOOConfig
from rlkit.oracle import targets
from rlkit.oracle.episodes import enumerate_episodes, episode_world
from rlkit.oracle.expectation import World, expected_gradient
from rlkit.oracle.tree import logps_of, probabilities
from rlkit.types import Algorithm, RolloutBatch, TrainBatch

TOLERANCE = 1e-10
# (samples of a group, most words of a turn, most turns)
SIZES = [(2, 2, 2), (2, 1, 3), (3, 1, 2)]
both = pytest.mark.parametrize("parametrisation", ["tab", "tied"])


def credited(
    turns: TurnCredit, *, group_size: int, baseline: Baseline = Baseline.leave_one_out
) -> Algorithm:
    advantage = AdvantageConfig(baseline=baseline, scale=Scale.none, turns=turns)
    cfg = GRPOConfig(
        group_size=group_size, aggregation=Aggregation.sequence_sum, advantage=advantage
    )
    return build(objective(cfg), setting(group_size=group_size))


def policy_gradient(w: World) -> Tensor:
    return -targets.gradient(w, targets.expected_reward(w))


def test_the_tree_holds_every_episode_once() -> None:
    tree = enumerate_episodes(vocabulary=3, words=2, turns=2)
    # One ends at once; 6 first turns x 2 replies x 7 second turns.
    assert len(tree) == 1 + 6 * 2 * 7
    assert (
        len(
            {
                (tuple(i), tuple(m))
                for i, m in zip(tree.ids.tolist(), tree.mask.tolist(), strict=True)
            }
        )
        == 85
    )
    w = episode_world(parametrisation="tied", on_policy=True)
    assert abs(float(probabilities(w.tree, w.table).sum()) - 1.0) < 1e-14
    assert w.turn_rewards is not None
    assert torch.equal(w.turn_rewards.sum(dim=1), w.rewards)
    # A turn's reward depends on what was said until its end, and the law of a reply likewise.
    assert tree.spliced is not None and not bool((tree.spliced & tree.mask).any())


@both
@pytest.mark.parametrize(("group_size", "words", "turns"), SIZES)
@pytest.mark.parametrize("credit", [TurnCredit.trajectory, TurnCredit.to_go])
@pytest.mark.parametrize("baseline", [Baseline.leave_one_out, Baseline.none])
def test_whole_episodes_and_rewards_to_go_are_unbiased(
    parametrisation: str,
    group_size: int,
    words: int,
    turns: int,
    credit: TurnCredit,
    baseline: Baseline,
) -> None:
    w = episode_world(parametrisation=parametrisation, on_policy=True, words=words, turns=turns)
    algorithm = credited(credit, group_size=group_size, baseline=baseline)
    got = expected_gradient(w, algorithm, group_size=group_size)
    assert targets.relative_error(got, policy_gradient(w)) <= TOLERANCE


@both
@pytest.mark.parametrize(("group_size", "words", "turns"), SIZES)
def test_centring_per_turn_and_own_rewards_are_biased(
    parametrisation: str, group_size: int, words: int, turns: int
) -> None:
    w = episode_world(parametrisation=parametrisation, on_policy=True, words=words, turns=turns)
    for credit, least in ((TurnCredit.centred_to_go, 0.05), (TurnCredit.own_turn, 0.1)):
        algorithm = credited(credit, group_size=group_size)
        got = expected_gradient(w, algorithm, group_size=group_size)
        assert targets.relative_error(got, policy_gradient(w)) > least, credit


@both
def test_the_group_mean_shrinks_episodes_alike_and_turns_unevenly(parametrisation: str) -> None:
    w = episode_world(parametrisation=parametrisation, on_policy=True, words=1, turns=3)
    whole = credited(TurnCredit.trajectory, group_size=2, baseline=Baseline.group_mean)
    got = expected_gradient(w, whole, group_size=2)
    assert targets.relative_error(got, 0.5 * policy_gradient(w)) <= TOLERANCE
    turns = credited(TurnCredit.to_go, group_size=2, baseline=Baseline.group_mean)
    uneven = expected_gradient(w, turns, group_size=2)
    assert targets.cosine(uneven, policy_gradient(w)) < 1.0 - 1e-3


def test_a_sample_alone_in_its_turn_keeps_its_reward() -> None:
    """An advantage of 0 there, as a group of one has, would be a bias."""
    w = episode_world(parametrisation="tab", on_policy=True, words=1, turns=3)
    algorithm = credited(TurnCredit.to_go, group_size=2)

    def silent(rollout: RolloutBatch) -> TrainBatch:
        batch = algorithm.prepare(rollout)
        assert rollout.turn_ids is not None
        most = rollout.turn_ids.amax(dim=1).view(-1, 2)
        alone = rollout.turn_ids > most.flip(1).flatten()[:, None]
        assert bool((batch.advantages[alone & rollout.completion_mask] > 0.0).any())
        return replace(batch, advantages=batch.advantages.masked_fill(alone, 0.0))

    got = expected_gradient(w, algorithm._replace(prepare=silent), group_size=2)
    assert targets.relative_error(got, policy_gradient(w)) > 0.05


@both
def test_one_turn_is_the_trajectory_bit_for_bit(parametrisation: str) -> None:
    w = episode_world(parametrisation=parametrisation, on_policy=True, words=2, turns=1)
    gradients = [
        expected_gradient(w, credited(credit, group_size=2), group_size=2) for credit in TurnCredit
    ]
    for gradient in gradients[1:]:
        assert torch.equal(gradient, gradients[0])


@both
@pytest.mark.parametrize("credit", [TurnCredit.trajectory, TurnCredit.to_go])
def test_a_penalty_in_the_reward_is_the_kl_of_whole_episodes(
    parametrisation: str, credit: TurnCredit
) -> None:
    """Environment probabilities cancel: nothing but sampled words is in the KL."""
    w = episode_world(parametrisation=parametrisation, on_policy=True)
    kl = KLConfig(estimator=KLEstimator.k1, placement=KLPlacement.reward, beta=0.3)
    advantage = AdvantageConfig(baseline=Baseline.leave_one_out, scale=Scale.none, turns=credit)
    cfg = RLOOConfig(group_size=2, aggregation=Aggregation.sequence_sum, advantage=advantage)
    algorithm = build(Objective(cfg, kl, RatioConfig(), CorrectionConfig()), setting(group_size=2))
    got = expected_gradient(w, algorithm, group_size=2)
    penalty = targets.gradient(w, targets.reverse_sequence(w))
    assert targets.relative_error(got, 0.3 * penalty + policy_gradient(w)) <= TOLERANCE


def true_values(w: World) -> Tensor:
    """(N, T) expected rewards from each sampled word on, given all words before it."""
    assert w.turn_rewards is not None
    to_come = w.turn_rewards.flip(1).cumsum(1).flip(1)
    chance = probabilities(w.tree, w.table)
    result = torch.zeros(w.tree.mask.shape, dtype=torch.float64)
    for n, t in w.tree.mask.nonzero().tolist():
        same = (w.tree.ids[:, :t] == w.tree.ids[n, :t]).all(dim=1) & w.tree.mask[:, t]
        result[n, t] = (chance * to_come[:, t])[same].sum() / chance[same].sum()
    return result


@both
@pytest.mark.parametrize("lam", [1.0, 0.95, 0.5, 0.0])
def test_ppo_skips_the_environment_and_is_unbiased(parametrisation: str, lam: float) -> None:
    """With lam 1 for any critic, with lam < 1 for the exact one, as in a single turn."""
    w = episode_world(parametrisation=parametrisation, on_policy=True)
    cfg = PPOConfig(group_size=1, aggregation=Aggregation.sequence_sum, lam=lam, whiten=False)
    algorithm = build(objective(cfg), setting(group_size=1))
    exact = true_values(w)
    wrong = torch.sin(7.0 * exact + torch.arange(exact.shape[1]))
    errors = []
    for values in (exact, wrong):
        poisoned = values.masked_fill(~w.tree.mask, torch.nan)

        def prepare(rollout: RolloutBatch, values: Tensor = poisoned) -> TrainBatch:
            return algorithm.prepare(replace(rollout, values=values[rollout.prompt_ids[:, 0]]))

        got = expected_gradient(w, algorithm._replace(prepare=prepare))
        errors.append(targets.relative_error(got, policy_gradient(w)))
    assert errors[0] <= TOLERANCE
    assert (errors[1] <= TOLERANCE) == (lam == 1.0)


@both
def test_discount_counts_sampled_tokens(parametrisation: str) -> None:
    """gamma^k with k the sampled words in between, whatever the environment said meanwhile."""
    w = episode_world(parametrisation=parametrisation, on_policy=True)
    cfg = PPOConfig(
        group_size=1, aggregation=Aggregation.sequence_sum, lam=1.0, gamma=0.9, whiten=False
    )
    got = expected_gradient(w, build(objective(cfg), setting(group_size=1)))
    assert w.turn_rewards is not None
    scores = torch.func.jacrev(lambda t: logps_of(w.tree, w.model.table(t)))(w.theta)
    want = torch.zeros_like(got)
    for n, chance in enumerate(probabilities(w.tree, w.table)):
        sampled = w.tree.mask[n].nonzero().flatten().tolist()
        for i, t in enumerate(sampled):
            later = [0.9 ** (k - i) * w.turn_rewards[n, sampled[k]] for k in range(i, len(sampled))]
            want -= chance * sum(later) * scores[n, t]
    assert targets.relative_error(got, want) <= TOLERANCE


def test_online_dpo_compares_whole_episodes() -> None:
    """Against a double loop over episodes: the margin is that of their probabilities, replies
    included, which cancel."""
    w = episode_world(parametrisation="tab", on_policy=False, words=1, turns=3)
    cfg = OnlineDPOConfig(group_size=2, beta=0.7)
    algorithm = build(objective(cfg), setting(group_size=2))
    chance = probabilities(w.tree, w.behaviour)

    def objective_by_hand(table: Tensor) -> Tensor:
        margin = (probabilities(w.tree, table) / probabilities(w.tree, w.ref_table)).log()
        better = w.rewards[:, None] > w.rewards[None, :]
        losses = -torch.log(1 / (1 + torch.exp(-0.7 * (margin[:, None] - margin[None, :]))))
        # Both orders of a pair are drawn.
        return 2 * (chance[:, None] * chance[None, :] * losses)[better].sum()

    got = expected_gradient(w, algorithm, group_size=2)
    assert targets.relative_error(got, targets.gradient(w, objective_by_hand)) <= TOLERANCE


def test_lengths_count_sampled_words() -> None:
    """sequence_mean divides by the sampled words of a row, not by all that its context holds."""
    w = episode_world(parametrisation="tab", on_policy=True)
    cfg = GRPOConfig(
        group_size=1,
        aggregation=Aggregation.sequence_mean,
        advantage=AdvantageConfig(baseline=Baseline.none, scale=Scale.none),
    )
    got = expected_gradient(w, build(objective(cfg), setting(group_size=1)))
    lengths = w.tree.mask.sum(dim=1)
    chance = probabilities(w.tree, w.table).detach()

    def by_hand(table: Tensor) -> Tensor:
        return -(chance * w.rewards / lengths * logps_of(w.tree, table).sum(dim=1)).sum()

    assert targets.relative_error(got, targets.gradient(w, by_hand)) <= TOLERANCE


@pytest.mark.parametrize("level", [RatioLevel.sequence, RatioLevel.sequence_mean])
def test_one_ratio_for_the_row_is_refused_with_turns_of_their_own(level: RatioLevel) -> None:
    cfg = GRPOConfig(
        group_size=2,
        aggregation=Aggregation.sequence_mean,
        advantage=AdvantageConfig(
            baseline=Baseline.leave_one_out, scale=Scale.none, turns=TurnCredit.to_go
        ),
    )
    with pytest.raises(ValueError, match=r"^ratio\.level must be token or sequence_mean_token"):
        build(objective(cfg, ratio=RatioConfig(level=level)), setting(group_size=2))


def test_scales_that_a_lone_turn_cannot_have_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^algorithm\.advantage\.scale must not be group_std"):
        AdvantageConfig(
            baseline=Baseline.leave_one_out, scale=Scale.group_std, turns=TurnCredit.to_go
        )
