"""A training run of a tabular policy puts the parts of the production loop together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from rlkit.assembly.from_config import (
    new_state,
    resamples,
    schedule_of,
    shuffle_seed,
    update_settings,
)
from rlkit.assembly.targets import imitates
from rlkit.config import (
    Config,
    ConfigError,
    DeviceChoice,
    EvaluationConfig,
    algorithm_name,
    algorithm_of,
    flatten,
    option_of,
)
from rlkit.generation import sample_seed, sampling_config
from rlkit.tabular.config import (
    TabularGeneratorConfig,
    TabularModelConfig,
    TabularTaskConfig,
    check_size,
)
from rlkit.tabular.evaluate import ExactEvaluator
from rlkit.tabular.generator import TabularGenerator
from rlkit.tabular.policy import LOGITS, VALUES, TabularPolicy, new_policy
from rlkit.tabular.rewards import TableRewards
from rlkit.tabular.world import make_world, sampler_noise
from rlkit.tasks import train_indices
from rlkit.tracking.base import RunInfo, Tracker
from rlkit.training import checkpoint
from rlkit.training.collect import Collector
from rlkit.training.stopping import StopRequest
from rlkit.training.trainer import Trainer
from rlkit.training.update import TrainState
from rlkit.types import Algorithm, Prompt

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class TabularRun:
    """This run is what `rlkit.launch.job` needs; see `rlkit.launch.prepare.Prepared`."""

    config: Config
    policy: TabularPolicy
    algorithm: Algorithm
    generator: TabularGenerator

    def close(self) -> None:
        """Do nothing, for nothing is held."""

    def initial_state(self) -> TrainState:
        """Return the state before the first step."""
        return new_state(self.policy, self.config, self.algorithm, critic_prefix=VALUES)

    def trainer(self, tracker: Tracker, stop: StopRequest, *, run_dir: Path) -> Trainer:
        """Return the production training loop on the table."""
        config = self.config
        sampling = sampling_config(
            config.generator.sampling, max_completion_length=config.task.max_completion_length
        )
        collector = Collector(
            generator=self.generator,
            prompts=self.prompts,
            rewards=TableRewards(self.policy.world),
            decode=decode,
            seed=partial(sample_seed, config.seed),
            sampling=sampling,
            group_size=config.algorithm.group_size,
            resample=resamples(config),
            rounds_at_once=config.generator.rounds_at_once,
        )
        return Trainer(
            algorithm=self.algorithm.at,
            settings=update_settings(config),
            schedule=schedule_of(config),
            collector=collector,
            generator=self.generator,
            evaluate=ExactEvaluator(policy=self.policy, temperature=sampling.temperature),
            tracker=tracker,
            shuffle_seed=partial(shuffle_seed, config),
            pad_token_id=0,
            device=_CPU,
            run_dir=run_dir,
            stop=config.stop,
        )

    def info(self, *, run_dir: Path, versions: Mapping[str, str], first_step: int) -> RunInfo:
        """Return what the tracker is told before the first step."""
        config = self.config
        return RunInfo(
            run_dir=run_dir,
            name=run_dir.name,
            task=config.task.name,
            model=config.model.source,
            algorithm=algorithm_name(config),
            device="cpu",
            dtype="float64",
            num_steps=config.steps,
            first_step=first_step,
            prompts_per_step=config.prompts_per_step,
            group_size=config.algorithm.group_size,
            reward_names=("table",),
            config=flatten(config),
            versions=versions,
        )

    def save(self, run_dir: Path) -> None:
        """Write the table of logits as `adapter/table.safetensors`."""
        folder = run_dir / "adapter"
        folder.mkdir(exist_ok=True)
        checkpoint.write_tensors(folder / "table.safetensors", {LOGITS: self.policy.logits})

    def prompts(self, *, step: int, attempt: int, success: Mapping[str, float]) -> list[Prompt]:
        """Return the prompts of a step: every prompt once before any comes again."""
        count = self.policy.world.rewards.shape[0]
        config = self.config
        indices = train_indices(config.seed, step, config.prompts_per_step, count, attempt=attempt)
        return [Prompt(index=i, ids=(i,), text=f"prompt {i}") for i in indices]


def tabular_run(config: Config) -> TabularRun:
    """Check everything and draw the world; raises ConfigError with one line."""
    model, task, generator = config.model, config.task, config.generator
    if not isinstance(model, TabularModelConfig):
        raise ConfigError(f"model must be tabular with task=tabular, got {model.source}")
    if not isinstance(task, TabularTaskConfig):
        raise ConfigError(f"task must be tabular with model=tabular, got {task.name}")
    if not isinstance(generator, TabularGeneratorConfig):
        got = option_of("generator", generator)
        raise ConfigError(f"generator must be tabular with model=tabular, got {got}")
    if imitates(config):
        name = algorithm_name(config)
        raise ConfigError(f"algorithm must be one that samples with model=tabular, got {name}")
    if config.init_from is not None:
        raise ConfigError(f"init_from must be unset with model=tabular, got {config.init_from}")
    if config.reward.functions:
        named = ", ".join(config.reward.functions)
        raise ConfigError(f"reward.functions must be empty with model=tabular, got {named}")
    exact = EvaluationConfig(every=config.evaluation.every)
    for key in ("num_prompts", "samples_per_prompt", "kl", "tasks"):
        value = getattr(config.evaluation, key)
        if value != getattr(exact, key):
            why = "with model=tabular, whose evaluation is exact"
            raise ConfigError(f"evaluation.{key} has no effect {why}, got {value}")
    if config.device is DeviceChoice.cuda:
        raise ConfigError("device must be auto or cpu with model=tabular, got cuda")
    try:
        check_size(model, task)
        algorithm = algorithm_of(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    world = make_world(model, task)
    policy = new_policy(world, critic=algorithm.outputs.values)
    return TabularRun(
        config=config,
        policy=policy,
        algorithm=algorithm,
        generator=TabularGenerator(policy.logits, sampler_noise(generator, world)),
    )


def decode(ids: Sequence[int]) -> str:
    """Return words as numbers."""
    return " ".join(map(str, ids))
