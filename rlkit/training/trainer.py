"""Run the training loop: collect, score, prepare, update, sync. It knows no algorithm by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from rlkit.functional import sampling_mismatch
from rlkit.ranks import ALONE, Ranks
from rlkit.tracking.base import (
    EvalRecord,
    Level,
    Phase,
    SampleRow,
    StepRecord,
    Tracker,
    TrackingError,
)
from rlkit.training import checkpoint, rollout_files
from rlkit.training.clock import StepClock
from rlkit.training.collate import collate
from rlkit.training.collect import Collection, RolloutSource
from rlkit.training.curriculum import success_after
from rlkit.training.drift import check_same_adapter
from rlkit.training.metrics import (
    average,
    critic_metrics,
    mean,
    memory_metrics,
    rollout_metrics,
    sample_row,
    sample_rows,
)
from rlkit.training.microbatch import minibatches
from rlkit.training.no_signal import (
    StopConfig,
    check_in_a_row,
    is_without_signal,
    what_the_base_model_earns,
)
from rlkit.training.out_of_memory import say_smaller
from rlkit.training.progress import checkpoint_of
from rlkit.training.rollout_files import SavedRollouts
from rlkit.training.schedule import RunSchedule
from rlkit.training.score import score
from rlkit.training.scoring import who_gave_no_reward
from rlkit.training.sharded import Sharded
from rlkit.training.stopping import Interrupted, StopRequest
from rlkit.training.update import (
    TrainState,
    UpdateResult,
    UpdateSettings,
    fit_in_memory,
    train_step,
)
from rlkit.types import Algorithm, Generator, RolloutBatch, RolloutKind, TrainBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """The parts of a run; only `TrainState` changes while it runs."""

    algorithm: Callable[[int], Algorithm]
    """The algorithm of a step: nearly always the same one, but a critic may learn alone first."""
    settings: UpdateSettings
    schedule: RunSchedule
    collector: RolloutSource
    generator: Generator
    evaluate: Callable[[str, int], EvalRecord]
    """(label, steps done) to an evaluation of the current policy on held-out prompts."""
    tracker: Tracker
    shuffle_seed: Callable[[int, int], int]
    """(step, inner epoch) to the seed that splits a batch into minibatches."""
    pad_token_id: int
    device: torch.device
    run_dir: Path
    stop: StopConfig = field(default_factory=StopConfig)
    """When a run that learns nothing ends."""
    ranks: Ranks = ALONE
    """The first of them saves and records for all."""
    planned_bytes: int = 0
    """Peak that the memory plan foresaw, for comparison; 0 = there was no plan."""

    def fit(
        self, state: TrainState, *, stop: StopRequest, on_record: Container[str] = ()
    ) -> TrainState:
        """Train from `state` to the last step; raise Interrupted at a safe point when asked to.

        The last finished step is saved before the loop ends, for whatever reason. The exception is
        an update under way: the parameters are no longer those of that step. `on_record` has the
        labels of evaluations of this policy; one that was due and is not there is made first.
        """
        self.generator.load_adapter(state.learner.adapter, state.updates)
        due = "before" if state.step == 0 else self.schedule.due(state.step)
        if due and (due not in on_record or state.step == 0):
            self._evaluate(due, state)
        saved = state.step
        try:
            while state.step < self.schedule.num_steps:
                self.ranks.together(stop.check)
                state = self.run_step(state, stop)
                done = state.step
                # Before the checkpoint: a run killed in between repeats the step and evaluates.
                if due := self.schedule.due(state.step):
                    self._evaluate(due, state)
                if done % self.schedule.checkpoint_every == 0 or done == self.schedule.num_steps:
                    self.save(state)
                    saved = done
        except Exception as error:
            # Only a stop finds all ranks at one place, from which they can put a whole together.
            reachable = isinstance(error, Interrupted) or not isinstance(state.optimizer, Sharded)
            if state.step > saved and not state.updating and reachable:
                self._save_all_the_same(state)
            raise
        self._evaluate("after", state)
        return state

    def _save_all_the_same(self, state: TrainState) -> None:
        """Save while an error is on its way; what stops this must not hide that error."""
        try:
            self.save(state)
        except (OSError, TrackingError) as error:
            text = f"step {state.step} is not saved, the checkpoint before it is: {error}"
            self.tracker.message(Level.error, text)

    def run_step(self, state: TrainState, stop: StopRequest) -> TrainState:
        """Run one rollout batch, all its updates, one record. A stop takes effect before them."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        clock = StepClock(self.device)
        collection = self.collector.collect(
            state.step, policy_version=state.updates, clock=clock, success=state.success
        )
        state.success = success_after(state.success, collection.counts)
        if collection.groups:
            return self._learn(state, collection, clock, stop)
        return self._skip(state, collection, clock)

    def _learn(
        self, state: TrainState, collection: Collection, clock: StepClock, stop: StopRequest
    ) -> TrainState:
        groups = collection.groups
        batch = collate(
            groups,
            reward_weights=self.collector.rewards.weights,
            pad_token_id=self.pad_token_id,
            device=self.device,
        )
        self.ranks.together(stop.check)
        algorithm, divisor = self.algorithm(state.step), state.microbatch_divisor
        kind = algorithm.rollouts
        if kind is RolloutKind.sampled:
            self._keep(batch, state.step)
        with clock.phase(Phase.score):
            self.tracker.progress(Phase.score, 0, len(batch))
            batch = fit_in_memory(
                state, batch, self.settings, lambda s: score(state.learner, batch, algorithm, s)
            )
            with torch.no_grad():
                train_batch = algorithm.prepare(batch)
            self.tracker.progress(Phase.score, len(batch), len(batch))
        self.ranks.together(stop.check)
        state.updating = True
        with clock.phase(Phase.update):
            results, mismatch = self._update(state, train_batch, algorithm)
            check_same_adapter(state, self.ranks)
        if state.microbatch_divisor != divisor:
            said = say_smaller(state.step, state.microbatch_divisor)
            self.tracker.message(Level.warning, said)
        with clock.phase(Phase.sync):
            self.generator.load_adapter(state.learner.adapter, state.updates)
        metrics = {
            **rollout_metrics(groups, self.collector.rewards.names, kind=kind),
            **collection.counts,
            **mismatch,
            **average([result.metrics for result in results]),
            **critic_metrics(train_batch),
        }
        tokens = float(batch.completion_mask.sum())
        metrics["num_tokens"] = float(batch.prompt_mask.sum() + batch.exists.sum())
        in_order = train_batch if algorithm.rows_per_unit == 1 else None
        rows = sample_rows(groups, step=state.step, batch=in_order, kind=kind)
        state.no_reward_in_row = 0
        no_signal = kind is RolloutKind.sampled and is_without_signal(groups)
        state.no_signal_in_row = state.no_signal_in_row + 1 if no_signal else 0
        return self._record(state, metrics, rows, clock, tokens=tokens)

    def _skip(self, state: TrainState, collection: Collection, clock: StepClock) -> TrainState:
        """Skip a step without rewards: no parameter changes, and it counts as its updates would."""
        groups, counts = collection.unrewarded, collection.counts
        prefix = "rewards/failures/"
        failed = {k.removeprefix(prefix): n for k, n in counts.items() if k.startswith(prefix)}
        blame = who_gave_no_reward(groups, self.collector.rewards, failed)
        text = f"step {state.step} is skipped: no sample has a reward from {blame}"
        self.tracker.message(Level.warning, text)
        state.updates += self.settings.optim.updates_per_batch
        with clock.phase(Phase.sync):
            self.generator.load_adapter(state.learner.adapter, state.updates)
        rows = [sample_row(s, step=state.step) for group in groups for s in group]
        lengths = [row.num_tokens for row in rows]
        metrics = {"reward": math.nan, "skipped_updates": 1.0, **counts}
        metrics["completions/mean_length"] = mean(lengths)
        prompts = sum(len(s.rollout.prompt.ids) for group in groups for s in group)
        metrics["num_tokens"] = float(sum(lengths) + prompts)
        state.no_reward_in_row += 1
        state.no_signal_in_row += 1
        tokens = float(sum(lengths))
        return self._record(state, metrics, rows, clock, tokens=tokens, blame=blame)

    def _record(
        self,
        state: TrainState,
        metrics: dict[str, float],
        rows: list[SampleRow],
        clock: StepClock,
        *,
        tokens: float,
        blame: str = "",
    ) -> TrainState:
        """Close a step: write its record and counts, and end a run that learns nothing."""
        most = self.ranks.largest(clock.metrics() | memory_metrics(self.device))
        state.samples += round(metrics.get("rollouts/sampled", 0.0))
        state.train_seconds += most["time/step"]
        metrics |= most | self.ranks.costs()
        metrics["speed/tokens_per_second"] = tokens / most["time/step"]
        if self.planned_bytes:
            metrics["memory/planned_bytes"] = float(self.planned_bytes)
        self.tracker.step(StepRecord(step=state.step, metrics=metrics, samples=rows))
        state.step += 1
        state.updating = False
        check_in_a_row(
            self.stop,
            no_reward=state.no_reward_in_row,
            no_signal=state.no_signal_in_row,
            blame=blame,
        )
        return state

    def _update(
        self, state: TrainState, batch: TrainBatch, algorithm: Algorithm
    ) -> tuple[list[UpdateResult], dict[str, float]]:
        """Make all updates on one batch; measure before them how far trainer and sampler differ."""
        optim = self.settings.optim
        results: list[UpdateResult] = []
        mismatch: Mapping[str, Tensor] = {}
        for epoch in range(optim.inner_epochs):
            seed = self.shuffle_seed(state.step, epoch)
            for part in minibatches(batch, num_minibatches=optim.minibatches, seed=seed):
                self.tracker.progress(Phase.update, len(results), optim.updates_per_batch)
                state, result = train_step(state, part, algorithm, self.settings)
                if not results and algorithm.rollouts is RolloutKind.sampled:
                    mismatch = sampling_mismatch(
                        result.logps, part.rollout.sampling_logps, part.rollout.completion_mask
                    )
                results.append(result)
        self.tracker.progress(Phase.update, len(results), len(results))
        return results, {name: float(value) for name, value in mismatch.items()}

    def save(self, state: TrainState) -> Path:
        """Write a checkpoint of `state`, as the first rank."""
        found = checkpoint_of(state, config_hash=self.schedule.config_hash, ranks=self.ranks)
        if self.ranks.rank != 0:
            return self.run_dir
        path = checkpoint.save(
            self.run_dir / "checkpoints",
            found,
            keep_last=self.schedule.keep_last,
            keep_every=self.schedule.keep_every,
        )
        rollout_files.prune(self.run_dir)
        return path

    def _keep(self, batch: RolloutBatch, step: int) -> None:
        """Save `batch` for `rlkit replay` if the policy that sampled it can be had again."""
        if self.ranks.rank == 0 and rollout_files.is_recoverable(self.run_dir, step):
            collector = self.collector
            rollouts = SavedRollouts(
                batch=batch,
                step=step,
                reward_names=tuple(collector.rewards.names),
                group_size=collector.group_size,
                temperature=self.settings.temperature,
                max_completion_length=collector.sampling.max_completion_length,
            )
            rollout_files.save(self.run_dir, rollouts)

    def _evaluate(self, label: str, state: TrainState) -> None:
        record, kind = self.evaluate(label, state.step), self.algorithm(state.step).rollouts
        first = state.step == 0 and record.samples and kind is RolloutKind.sampled
        if first and (said := what_the_base_model_earns(row.reward for row in record.samples)):
            self.tracker.message(Level.warning, said)
        cost = {"samples": float(state.samples), "time/train": state.train_seconds}
        self.tracker.evaluation(replace(record, metrics=dict(record.metrics) | cost))
        # An engine forgets the prompts: a resumed run goes on from here without the evaluation.
        self.generator.load_adapter(state.learner.adapter, state.updates)
