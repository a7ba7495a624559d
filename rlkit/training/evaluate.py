"""Measure success or reward on held-out prompts, with the same seeds every time, to pair runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rlkit.ranks import ALONE, Ranks
from rlkit.tracking.base import EvalRecord, Measure, Phase, Tracker
from rlkit.tracking.intervals import evaluate, mean_interval
from rlkit.tracking.repeated import repeated_metrics
from rlkit.training.exchange import Sampled
from rlkit.training.metrics import episode_metrics, mean, sample_row
from rlkit.training.scoring import Decode, Rewards, completion_of, score_rollouts
from rlkit.training.targets import TargetMeter
from rlkit.training.turns import ask, portion_of, sample_by_turns
from rlkit.types import (
    Completion,
    Generator,
    Group,
    Prompt,
    PromptRequest,
    Rollout,
    SamplingConfig,
    ScoredRollout,
)


class SideTask(NamedTuple):
    """Another task that is evaluated beside the one that is trained on."""

    prompts: Sequence[Prompt]
    sampling: SamplingConfig
    success: Callable[[Completion], bool]
    answer: Callable[[Completion], str | None] | None


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
    answer: Callable[[Completion], str | None] | None = None
    """Returns the vote of a completion in maj@n; None = the task cannot know."""
    side_tasks: Mapping[str, SideTask] = field(default_factory=dict)
    """Further tasks by name; their numbers are metrics of the record."""
    divergence: Callable[[Sequence[Sequence[Rollout]]], dict[str, float]] | None = None
    """Measures `kl` and `entropy` of the samples; None = not measured."""
    target_loss: TargetMeter | None = None
    """Measures the loss of held-out targets; None = there are none."""
    tracker: Tracker
    ranks: Ranks = ALONE
    """Each rank samples and scores its share of the prompts."""
    at_once: int = 0
    """Prompts that a rank samples in one call; 0 = its whole share."""

    def __call__(self, label: str, steps_done: int) -> EvalRecord:
        """Run one evaluation; its interval treats the samples of a prompt as one cluster.

        Samples without a reward are not failures: where rewards are measured they are left out, and
        counted as `unjudged`. A run that imitates, without a criterion or a reward, samples
        nothing: the likelihood of the held-out targets is measured.
        """
        if self.target_loss is not None and self.success is None and not self.rewards.names:
            return self._likelihood(self.target_loss, label, steps_done)
        self.tracker.progress(Phase.evaluate, 0, len(self.prompts))

        def sample(places: Iterable[int]) -> Sampled:
            rollouts = self._sample(self.prompts, self.sampling, places)
            return score_rollouts(rollouts, self.rewards, self.decode)

        portion = portion_of(self.generator, self.num_samples, at_once=self.at_once)
        groups, _ = sample_by_turns(self.ranks, self.prompts, sample, portion=portion)
        rollouts = [[sample.rollout for sample in group] for group in groups]
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
                **self._repeated(rollouts, self.success, self.answer),
                **self._beside(),
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
        if self.target_loss is not None:
            metrics |= self.target_loss().metrics()
        return metrics | (self.divergence(rollouts) if self.divergence else {})

    def _sample(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, places: Iterable[int]
    ) -> Sequence[Sequence[Rollout]]:
        def request(place: int) -> PromptRequest:
            prompt = prompts[place]
            return PromptRequest(
                prompt, [self.seed(prompt.index, i) for i in range(self.num_samples)]
            )

        return ask(self.generator, places, request, num_samples=self.num_samples, sampling=sampling)

    def _repeated(
        self,
        rollouts: Sequence[Sequence[Rollout]],
        success: Callable[[Completion], bool] | None,
        answer: Callable[[Completion], str | None] | None,
    ) -> dict[str, float]:
        """Return pass@k and maj@n where a task knows what is right and there are samples."""
        if success is None or self.num_samples < 2:
            return {}
        completions = [[completion_of(r, self.decode) for r in group] for group in rollouts]
        values = [[float(success(c)) for c in group] for group in completions]
        votes = None if answer is None else [[answer(c) for c in group] for group in completions]
        return repeated_metrics(values, votes)

    def _beside(self) -> dict[str, float]:
        """Return the success on each further task, as `NAME/success` with its interval."""
        metrics: dict[str, float] = {}
        for name, task in self.side_tasks.items():
            rollouts = self._sample(task.prompts, task.sampling, range(len(task.prompts)))
            completions = [[completion_of(r, self.decode) for r in group] for group in rollouts]
            values = [mean(float(task.success(c)) for c in group) for group in completions]
            found = mean_interval(values, samples_per_prompt=self.num_samples)
            metrics |= {
                f"{name}/success": found.mean,
                f"{name}/success/low": found.low,
                f"{name}/success/high": found.high,
            }
            more = self._repeated(rollouts, task.success, task.answer)
            metrics |= {f"{name}/{key}": value for key, value in more.items()}
        return metrics

    def _likelihood(self, meter: TargetMeter, label: str, steps_done: int) -> EvalRecord:
        found = meter()
        prompts = [target.prompt for target in meter.targets]
        return evaluate(
            label=label,
            step=steps_done,
            prompt_indices=[p.index for p in prompts],
            values=found.logps,
            measure=Measure.logp,
            prompt_keys=[p.key for p in prompts] if all(p.key for p in prompts) else (),
            samples_per_prompt=1,
            metrics=found.metrics(),
        )

    def _value(self, sample: ScoredRollout) -> float:
        """Return 1 for success, 0 for failure by the task's criterion, else the reward or NaN."""
        if self.success is None:
            return sample.reward
        return float(self.success(completion_of(sample.rollout, self.decode)))
