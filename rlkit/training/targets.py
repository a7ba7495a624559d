"""Learn from completions that the task gives: they come as rollouts that nobody sampled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch

from rlkit.tracking.base import Phase
from rlkit.training.clock import StepClock
from rlkit.training.collate import collate
from rlkit.training.collect import Collection
from rlkit.training.learner import Learner
from rlkit.training.microbatch import microbatches
from rlkit.training.scoring import Rewards
from rlkit.types import (
    FinishReason,
    OutputSpec,
    Prompt,
    Rollout,
    SamplingConfig,
    ScoredRollout,
)


class Target(NamedTuple):
    """A prompt with the completion to imitate."""

    prompt: Prompt
    ids: tuple[int, ...]
    """Token ids, the stop token included unless the text was cut."""
    finish_reason: FinishReason
    """`length` for a text that was cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetCollector:
    """It gives a step's targets as rollouts, and keeps nothing from one step to the next."""

    targets: Callable[[int], Sequence[Target]]
    """The targets of a step, a pure function of it."""
    rewards: Rewards
    """The functions of the evaluation; none of them sees a target."""
    sampling: SamplingConfig
    group_size: int = 1

    def collect(
        self,
        step: int,
        *,
        policy_version: int,
        clock: StepClock,
        success: Mapping[str, float] = MappingProxyType({}),
    ) -> Collection:
        """Return the targets of `step`, each a group of its own.

        Args:
            step: The step, >= 0.
            policy_version: Updates that the policy has seen.
            clock: It measures the phases.
            success: Nothing, for nothing is sampled.
        """
        with clock.phase(Phase.generate):
            found = self.targets(step)
        num_rewards = len(self.rewards.names)
        groups = [(_unscored(t, version=policy_version, num_rewards=num_rewards),) for t in found]
        return Collection(list(groups), {}, [])


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetMeter:
    """Measures how likely the policy finds the held-out targets, at temperature 1."""

    learner: Learner
    targets: Sequence[Target]
    pad_token_id: int
    device: torch.device
    tokens_per_microbatch: int

    @torch.no_grad()
    def __call__(self) -> TargetLoss:
        """Score every target once."""
        rows = [(_unscored(target, version=0, num_rewards=0),) for target in self.targets]
        batch = collate(rows, reward_weights=(), pad_token_id=self.pad_token_id, device=self.device)
        sums = torch.zeros(len(batch), dtype=torch.float64)
        for index in microbatches(batch, max_tokens=self.tokens_per_microbatch):
            micro = batch.rows(index.to(self.device))
            adapter = self.learner.adapter
            out = self.learner.forward(micro, adapter=adapter, temperature=1.0, spec=OutputSpec())
            logps = out.logps.masked_fill(~micro.completion_mask, 0.0)
            sums[index] = logps.double().sum(dim=1).cpu()
        lengths = batch.completion_mask.sum(dim=1).cpu()
        return TargetLoss(tuple((sums / lengths).tolist()), float(-sums.sum() / lengths.sum()))


class TargetLoss(NamedTuple):
    """This record holds the likelihood of held-out targets, in nats a token."""

    logps: tuple[float, ...]
    """The mean log-probability of each target's tokens."""
    loss: float
    """The negative mean over the tokens of all targets, as the training loss has it."""

    def metrics(self) -> dict[str, float]:
        """Return `target_loss` and its exponential, `target_perplexity`."""
        perplexity = math.exp(self.loss) if self.loss < 700.0 else math.inf
        return {"target_loss": self.loss, "target_perplexity": perplexity}


def _unscored(target: Target, *, version: int, num_rewards: int) -> ScoredRollout:
    """Return a target as a rollout: no sampler has a logp for it, and no reward saw it."""
    rollout = Rollout(
        prompt=target.prompt,
        sample_index=0,
        completion_ids=target.ids,
        sampling_logps=(math.nan,) * len(target.ids),
        finish_reason=target.finish_reason,
        policy_version=version,
    )
    components = (math.nan,) * num_rewards
    return ScoredRollout(rollout=rollout, text="", components=components, reward=math.nan)
