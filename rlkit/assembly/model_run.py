"""This module holds a loaded and checked run of a language model, and what a job does with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlkit.assembly.environments import Stage
from rlkit.assembly.from_config import (
    EVALUATION_SEED,
    new_state,
    resamples,
    schedule_of,
    shuffle_seed,
    update_settings,
)
from rlkit.assembly.generators import new_generator, prompts_at_once
from rlkit.assembly.prompts import render_prompts
from rlkit.assembly.save import save_trained
from rlkit.assembly.shares import shares_of
from rlkit.assembly.stoppable import StoppableRewards
from rlkit.assembly.targets import Imitated, meter_of, targets_for
from rlkit.config import Config, algorithm_name, flatten, option_of
from rlkit.generation import Progress, sample_seed
from rlkit.models.load import BaseModel
from rlkit.plan.device import Meter
from rlkit.plan.of_config import Planned
from rlkit.plan.run import record
from rlkit.policy.policy import CRITIC_PREFIX, Policy
from rlkit.ranks import ALONE, Ranks
from rlkit.rewards.pool import RewardPool
from rlkit.tasks import Split, Task, train_indices
from rlkit.tracking.base import Phase, RunInfo, Tracker
from rlkit.training.collect import Collector, RolloutSource
from rlkit.training.deadline import Deadline, Hung, timed
from rlkit.training.divergence import DivergenceMeter, EvalKL
from rlkit.training.evaluate import Evaluator, SideTask
from rlkit.training.loss_scale import FLOAT16
from rlkit.training.scoring import Decode, score_rollouts
from rlkit.training.stopping import StopRequest
from rlkit.training.targets import Target, TargetCollector
from rlkit.training.together import together
from rlkit.training.trainer import Trainer
from rlkit.training.update import TrainState
from rlkit.types import Algorithm, Generator, Group, Prompt, SamplingConfig, Setting

if TYPE_CHECKING:
    from rlkit.generation.vllm.engine import Engine
    from rlkit.generation.vllm.lora import Injector

_CLOSE_SECONDS = 30.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRun:
    """The one record of a run that is ready to train resolves everything once.

    `rlkit.assembly.assemble` makes it before the run has a folder; see
    `rlkit.launch.prepare.Prepared` for what a job does with it.
    """

    config: Config
    """The user's, with `auto` of the generator resolved: the run's identity, kept in its folder."""
    planned: Planned
    """The memory plan, and the effective configuration, which asks for exactly what it gives."""
    meter: Meter
    """Measures what the run takes of the device."""
    device: torch.device
    base: BaseModel
    policy: Policy
    task: Task
    rewards: RewardPool
    engine: Engine | None
    """The generator's own engine, started before the model whose weights it may share."""
    injector: Injector | None
    """Hands the adapter to `engine`."""
    resources: ExitStack
    """Ends reward processes, engine and generator, the last started first."""
    algorithm: Algorithm
    setting: Setting
    sampling: SamplingConfig
    stop_ids: frozenset[int]
    """Ids that end a completion: the model's, and stop strings that are special tokens."""
    decode: Decode
    """Sampled ids to the text that rewards see."""
    train: Split
    """The task's training split, without prompts that are too long if those are dropped."""
    eval_prompts: Sequence[Prompt]
    imitated: Imitated
    """The completions to imitate; none for a run that samples."""
    side_tasks: Mapping[str, SideTask] = field(default_factory=dict)
    """Further tasks of the evaluation, by name."""
    ranks: Ranks = ALONE
    stage: Stage | None = None
    """The environment that answers the model's turns; None = single turns."""

    def close(self) -> None:
        """End the generator, its engine and the reward processes; idempotent.

        What does not end in half a minute is left to the end of the process.
        """
        deadline = Deadline(seconds=_CLOSE_SECONDS, option="the time to end")
        try:
            with deadline.waiting("the generator and the reward processes to end"):
                self.resources.close()
        except Hung as error:
            _log.warning("%s", error)

    def initial_state(self) -> TrainState:
        """Return the state before the first step."""
        policy, config, algorithm = self.policy, self.config, self.algorithm
        shares = shares_of(policy, self.ranks)
        state = new_state(policy, config, algorithm, critic_prefix=CRITIC_PREFIX, shares=shares)
        if self.base.dtype is torch.float16:
            state.loss_scale = FLOAT16
        return state

    def trainer(self, tracker: Tracker, stop: StopRequest, *, run_dir: Path) -> Trainer:
        """Return the training loop, observed by `tracker`.

        A stop ends it between tokens or steps.
        """
        config = self.config
        record(self.planned.plan, run_dir)
        self.rewards.keep_in(run_dir)
        generator, rewards = self.generator(tracker, stop), StoppableRewards(self.rewards, stop)
        return Trainer(
            algorithm=self.algorithm.at,
            settings=update_settings(self.planned.config, self.ranks),
            schedule=schedule_of(config),
            collector=self._source(generator, rewards),
            generator=generator,
            evaluate=self.evaluator(generator, rewards, tracker),
            tracker=tracker,
            shuffle_seed=partial(shuffle_seed, config),
            pad_token_id=self.base.pad_token_id,
            device=self.device,
            run_dir=run_dir,
            stop=config.stop,
            planned_bytes=self.planned.plan.peak,
            ranks=self.ranks,
        )

    def info(self, *, run_dir: Path, versions: Mapping[str, str], first_step: int) -> RunInfo:
        """Return what the tracker is told before the first step."""
        config, on_cuda = self.config, self.device.type == "cuda"
        device = torch.cuda.get_device_name(self.device) if on_cuda else str(self.device)
        return RunInfo(
            run_dir=run_dir,
            name=run_dir.name,
            task=self.task.name,
            model=config.model.source,
            algorithm=algorithm_name(config),
            device=device,
            dtype=str(self.base.dtype).removeprefix("torch."),
            dtype_reason=self.base.notes[0],
            num_steps=config.steps,
            first_step=first_step,
            prompts_per_step=config.prompts_per_step,
            group_size=self.setting.group_size,
            reward_names=tuple(self.rewards.names),
            signal="reward" if self.imitated.targets is None else "loss",
            config=flatten(config),
            versions=versions,
        )

    def save(self, run_dir: Path) -> None:
        """Write what was learnt: `adapter/` in PEFT's format, or the whole `model/`."""
        save_trained(run_dir, self.policy, self.base, rope_length=self.config.model.rope_length)

    def prompts(self, *, step: int, attempt: int, success: Mapping[str, float]) -> list[Prompt]:
        """Return the training prompts of a step, by what was right so far if a curriculum asks."""
        seed, count = self.config.seed, self.config.prompts_per_step
        curriculum = self.task.curriculum
        if curriculum is None:
            indices = train_indices(seed, step, count, self.train.size, attempt=attempt)
        else:
            indices = curriculum.indices(seed, step, count, attempt=attempt, success=success)
        return render_prompts(self.task, self.train, indices, self.base, self.config)

    def _source(self, generator: Generator, rewards: StoppableRewards) -> RolloutSource:
        """Return what gives the trainer its rollouts: the sampler, or the task's targets."""
        config, targets = self.config, self.imitated.targets
        if targets is None:
            return Collector(
                generator=generator,
                prompts=self.prompts,
                rewards=rewards,
                decode=self.decode,
                seed=partial(sample_seed, config.seed),
                sampling=self.sampling,
                group_size=self.setting.group_size,
                resample=resamples(config),
                rounds_at_once=config.generator.rounds_at_once,
                ranks=self.ranks,
                at_once=prompts_at_once(self.planned.config.generator, self.setting.group_size),
                is_right=self.task.curriculum.is_right if self.task.curriculum else None,
            )

        def of_step(step: int) -> list[Target]:
            return targets_for(self.prompts(step=step, attempt=0, success={}), self.train, targets)

        return TargetCollector(targets=of_step, rewards=rewards, sampling=self.sampling)

    def base_samples(self, count: int) -> list[Group]:
        """Return at least `count` scored samples of the base model, on held-out prompts."""
        generator = self._new_generator(lambda _: None, lambda: None)
        generator.load_adapter(self.policy.adapter, 0)
        prompts = self.eval_prompts[:count]
        each = -(-count // len(prompts))
        seeds = [
            [sample_seed(EVALUATION_SEED, 0, p.index, i) for i in range(each)] for p in prompts
        ]
        rollouts = generator.generate(
            prompts, num_samples=each, sampling=self.sampling, seeds=seeds
        )
        return score_rollouts(rollouts, self.rewards, self.decode)[0]

    def generator(self, tracker: Tracker, stop: StopRequest) -> Generator:
        """Return the configured generator, which `close` ends."""
        size, patience = self.config.ranks_together, self.config.stop.silence_seconds
        deadline = Deadline(seconds=patience, option="stop.silence_seconds")

        def pulse() -> None:
            deadline.alive()
            if size == 1:  # ranks that sample together cannot leave the engine at different steps
                stop.check()

        def report(progress: Progress) -> None:
            pulse()
            if progress.rows_done == progress.rows:  # an engine is about to give its cache back
                self.meter.note()
                if progress.rows == self.planned.work.num_rows:  # of a step, not an evaluation
                    self.meter.sampled_tokens = max(self.meter.sampled_tokens, progress.tokens)
            tracker.progress(Phase.generate, progress.rows_done, progress.rows)

        name = option_of("generator", self.config.generator)
        own = timed(self._new_generator(report, pulse), deadline, name=f"generator={name}")
        return together(own, self.ranks, size=size)

    def _new_generator(
        self, report: Callable[[Progress], None], pulse: Callable[[], None]
    ) -> Generator:
        generator = new_generator(
            self.planned.config.generator,
            replace(self.base, stop_ids=self.stop_ids),
            self.policy,
            engine=self.engine,
            injector=self.injector,
            progress=report,
        )
        self.resources.callback(generator.close)
        return generator if self.stage is None else self.stage.over(generator, self.decode, pulse)

    def evaluator(
        self, generator: Generator, rewards: StoppableRewards, tracker: Tracker
    ) -> Evaluator:
        """Return what judges the generator's policy on the held-out prompts."""
        options = self.config.evaluation
        return Evaluator(
            generator=generator,
            prompts=self.eval_prompts,
            num_samples=options.samples_per_prompt,
            sampling=self.sampling,
            seed=partial(sample_seed, EVALUATION_SEED, 0),
            decode=self.decode,
            success=self.task.success,
            answer=self.task.answer,
            side_tasks=self.side_tasks,
            rewards=rewards,
            target_loss=meter_of(
                self.imitated,
                learner=self.policy,
                pad_token_id=self.base.pad_token_id,
                tokens_per_microbatch=self.planned.config.memory.tokens_per_microbatch or 0,
            ),
            divergence=None if options.kl is EvalKL.none else self._divergence(options.kl),
            tracker=tracker,
            ranks=self.ranks,
            at_once=prompts_at_once(self.planned.config.generator, options.samples_per_prompt),
        )

    def _divergence(self, estimator: EvalKL) -> DivergenceMeter:
        return DivergenceMeter(
            learner=self.policy,
            estimator=estimator,
            temperature=self.sampling.temperature,
            pad_token_id=self.base.pad_token_id,
            device=self.device,
            tokens_per_microbatch=self.planned.plan.choice.tokens_per_microbatch,
            ranks=self.ranks,
        )
