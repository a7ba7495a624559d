"""Measure success or reward on held-out prompts, with the same seeds every time, to pair runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlkit.tracking.base import EvalRecord, Measure, Phase, Tracker
from rlkit.tracking.intervals import evaluate
from rlkit.training.collect import Decode, Group, Rewards, completion_of, score_rollouts
from rlkit.training.metrics import episode_metrics, mean, sample_row
from rlkit.types import Completion, Generator, Prompt, Rollout, SamplingConfig, ScoredRollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """Samples held-out prompts from the generator's current policy and judges the answers."""

    generator: Generator
    prompts: Sequence[Prompt]
    num_samples: int
    """Samples of each prompt."""
    sampling: SamplingConfig
    seed: Callable[[int, int], int]
    """(prompt index, sample index) to a seed, whatever the run seed and the step."""
    decode: Decode
    success: Callable[[Completion], bool] | None
    """The task's own criterion, whatever the rewards; None = the reward itself is measured."""
    rewards: Rewards
    divergence: Callable[[Sequence[Sequence[Rollout]]], dict[str, float]] | None = None
    """Measures `kl` and `entropy` of the samples; None = not measured."""
    tracker: Tracker

    def __call__(self, label: str, steps_done: int) -> EvalRecord:
        """Run one evaluation; its interval treats the samples of a prompt as one cluster.

        Samples without a reward are not failures: where rewards are measured they are left out, and
        counted as `unjudged`.
        """
        self.tracker.progress(Phase.evaluate, 0, len(self.prompts))
        seeds = [[self.seed(p.index, i) for i in range(self.num_samples)] for p in self.prompts]
        rollouts = self.generator.generate(
            self.prompts, num_samples=self.num_samples, sampling=self.sampling, seeds=seeds
        )
        groups, _ = score_rollouts(rollouts, self.rewards, self.decode)
        values = [[self._value(sample) for sample in group] for group in groups]
        judged = [[value for value in group if not math.isnan(value)] for group in values]
        self.tracker.progress(Phase.evaluate, len(self.prompts), len(self.prompts))
        return evaluate(
            label=label,
            step=steps_done,
            prompt_indices=[p.index for p in self.prompts],
            values=[mean(group) for group in judged],
            measure=Measure.reward if self.success is None else Measure.success,
            prompt_keys=[p.key for p in self.prompts] if all(p.key for p in self.prompts) else (),
            samples_per_prompt=self.num_samples,
            metrics={
                **self._metrics(groups, rollouts),
                "judged": float(sum(map(len, judged))),
                "unjudged": float(sum(map(len, values)) - sum(map(len, judged))),
            },
            samples=[sample_row(s, step=steps_done) for group in groups for s in group],
        )

    def _metrics(
        self, groups: Sequence[Group], rollouts: Sequence[Sequence[Rollout]]
    ) -> dict[str, float]:
        samples = [sample for group in groups for sample in group]
        wrong = [s for s in samples if self._value(s) <= 0.0]
        metrics = {
            "reward": mean(s.reward for s in samples if not math.isnan(s.reward)),
            "length": mean(s.rollout.num_sampled for s in samples),
            "length_wrong": mean(s.rollout.num_sampled for s in wrong),
        }
        metrics |= episode_metrics([rollout for group in rollouts for rollout in group])
        return metrics | (self.divergence(rollouts) if self.divergence else {})

    def _value(self, sample: ScoredRollout) -> float:
        """Return 1 for success, 0 for failure by the task's criterion, else the reward or NaN."""
        if self.success is None:
            return sample.reward
        return float(self.success(completion_of(sample.rollout, self.decode)))
