"""Episodes whose context the template rewrites: the gradient over all episodes and all groups.

A real transformer in float64 is the policy. The truth is autograd of the expected reward, with each
turn's log-probs from a forward pass of transformers over what the model reads before it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from oracles import objective, setting
from small_policies import CPU, make_policy
from tiny_models import tiny_model
from torch import Tensor

from rlkit.algorithms import build
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.algorithms.objective.advantage import AdvantageConfig, Baseline, Scale, TurnCredit
from rlkit.algorithms.objective.aggregation import Aggregation
from rlkit.models.config import Switch
from rlkit.policy.policy import Policy
from rlkit.training.collate import collate
from rlkit.types import (
    Episode,
    EpisodeEnd,
    FinishReason,
    PolicyOutput,
    Prompt,
    Rollout,
    ScoredRollout,
    TurnRecord,
)

WORDS = 4
PROMPT = (1, 2)


class Outcome(NamedTuple):
    """One episode of the world: words, the reply between them, and what was earned."""

    first: int
    reply: int | None
    second: int | None

    @property
    def afresh(self) -> bool:
        """Words 2 and up are thoughts, which the template leaves out of the past."""
        return self.first >= 2

    @property
    def spliced(self) -> tuple[int, ...]:
        """The model reads it behind its first turn, or in place of all."""
        assert self.reply is not None
        return (*PROMPT, 3, 3, self.reply) if self.afresh else (3, self.reply)

    @property
    def context(self) -> tuple[int, ...]:
        return self.spliced if self.afresh else (*PROMPT, self.first, *self.spliced)

    @property
    def rewards(self) -> tuple[float, ...]:
        one = (0.25, 0.5, -0.75, 1.0)[self.first]
        if self.second is None or self.reply is None:
            return (one,)
        return one, (self.second * (self.reply + 1) % 3) * 0.5 - 0.25 * self.first

    def scored(self) -> ScoredRollout:
        turns = [TurnRecord(0, 1, self.rewards[0])]
        ids: tuple[int, ...] = (self.first,)
        if self.second is not None:
            ids = (*ids, *self.spliced, self.second)
            turns.append(TurnRecord(len(ids) - 1, len(ids), self.rewards[1], afresh=self.afresh))
        rollout = Rollout(
            prompt=Prompt(index=0, ids=PROMPT, text=""),
            sample_index=0,
            completion_ids=ids,
            sampling_logps=(0.0,) * len(ids),
            finish_reason=FinishReason.stop,
            policy_version=0,
            episode=Episode(turns=tuple(turns), end=EpisodeEnd.done),
        )
        reward = sum(self.rewards)
        return ScoredRollout(
            rollout=rollout, text="", components=(reward,), reward=reward, turn_rewards=self.rewards
        )


OUTCOMES = [
    Outcome(0, None, None),  # the first word ends the episode
    *(Outcome(a, r, b) for a in range(1, WORDS) for r in (0, 1) for b in range(WORDS)),
]


def chance(outcome: Outcome) -> float:
    """The environment's law: it depends on what was said."""
    if outcome.reply is None:
        return 1.0
    return (0.25, 0.75)[outcome.reply] if outcome.first % 2 else (0.625, 0.375)[outcome.reply]


def make_world() -> Policy:
    # Its layer norm stays in float64, which the RMS norm of transformers does not.
    model = tiny_model("phi", vocab_size=WORDS, initializer_range=0.4)
    return make_policy(model, shared_prefix=Switch.off)


def next_logps(policy: Policy, context: tuple[int, ...]) -> Tensor:
    ids = torch.tensor([context])
    logits: Tensor = policy.model(input_ids=ids, use_cache=False).logits[0, -1]
    return logits.log_softmax(-1)


def truths(policy: Policy) -> tuple[Tensor, list[Tensor]]:
    """Return each outcome's probability, and the gradient of the expected reward."""
    with policy.tuning.active(policy.adapter):
        found = []
        for outcome in OUTCOMES:
            logp = next_logps(policy, PROMPT)[outcome.first]
            if outcome.second is not None:
                logp = logp + next_logps(policy, outcome.context)[outcome.second]
            found.append(logp.exp() * chance(outcome))
        probabilities = torch.stack(found)
        rewards = torch.tensor([sum(o.rewards) for o in OUTCOMES]).double()
        expected = (probabilities * rewards).sum()
    return probabilities.detach(), gradient(policy, expected)


def gradient(policy: Policy, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(policy.adapter.values()), retain_graph=True))


def error(got: list[Tensor], truth: list[Tensor]) -> float:
    flat, right = (torch.cat([x.flatten() for x in part]) for part in (got, truth))
    return float((flat - right).norm() / right.norm())


@pytest.mark.parametrize("credit", [TurnCredit.trajectory, TurnCredit.to_go])
def test_contexts_of_their_own_have_the_policy_gradient(credit: TurnCredit) -> None:
    policy = make_world()
    probabilities, truth = truths(policy)
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-12)
    batch = collate(
        [[o.scored() for o in OUTCOMES]], reward_weights=(1.0,), pad_token_id=0, device=CPU
    )
    assert batch.restarts is not None and int(batch.restarts.sum()) == 2 * 2 * WORDS
    assert batch.turn_rewards is not None
    exact = {"rewards": batch.rewards.double(), "turn_rewards": batch.turn_rewards.double()}
    batch = replace(batch, **exact)
    scored = policy.forward(batch, adapter=policy.adapter, temperature=1.0).logps
    logps = scored.detach().requires_grad_()
    advantage = AdvantageConfig(baseline=Baseline.leave_one_out, scale=Scale.none, turns=credit)
    cfg = GRPOConfig(group_size=2, aggregation=Aggregation.sequence_sum, advantage=advantage)
    algorithm = build(objective(cfg), setting(group_size=2))
    total = logps.new_zeros(())
    split = logps.new_zeros(())
    for i, one in enumerate(OUTCOMES):
        for j, other in enumerate(OUTCOMES[: i + 1]):
            index = torch.tensor([i, j])
            weight = probabilities[i] * probabilities[j] * (1.0 if i == j else 2.0)
            pair = logps[index]
            loss = algorithm.loss(PolicyOutput(pair), algorithm.prepare(batch.rows(index))).loss
            total = total + weight * loss
            split = split + weight * as_separate_samples(pair, (one, other))
    (upstream,) = torch.autograd.grad(-total, logps, retain_graph=True)
    assert error(gradient(policy, (scored * upstream).sum()), truth) < 1e-10
    # What others do, each context a sample of the group, is another gradient.
    (upstream,) = torch.autograd.grad(split, logps)
    scored = policy.forward(batch, adapter=policy.adapter, temperature=1.0).logps
    assert error(gradient(policy, (scored * upstream).sum()), truth) > 0.05


def as_separate_samples(pair: Tensor, outcomes: tuple[Outcome, Outcome]) -> Tensor:
    """Turns in one group: each has its episode's reward, and all others are its baseline."""
    terms = [
        (pair[i, place], sum(o.rewards))
        for i, o in enumerate(outcomes)
        for place in ([0] if o.second is None else [0, len(o.spliced) + 1])
    ]
    mean = sum(reward for _, reward in terms)
    count = len(terms)
    total = pair.new_zeros(())
    for logp, reward in terms:
        total = total + logp * (reward - (mean - reward) / (count - 1)) / 2
    return total
