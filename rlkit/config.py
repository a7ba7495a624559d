"""This is the root configuration: leaves are typed and ranged, and unknown keys are errors.

That holds for `+key=value` as well.

Rules and defaults live in the dataclasses of the packages; `conf/` keeps what differs. `register`
puts the schemas into Hydra's store, `load` turns a composed config into a checked `Config`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from rlkit import algorithms, generation, models, rewards, tabular, tasks, tracking
from rlkit.algorithms import (
    AlgorithmConfig,
    CorrectionConfig,
    KLConfig,
    Objective,
    RatioConfig,
    build,
)
from rlkit.checks.refusal import ConfigError as ConfigError
from rlkit.checks.refusal import checked, refuse_unknown_keys
from rlkit.checks.refusal import did_you_mean as did_you_mean
from rlkit.checks.refusal import require as require
from rlkit.checks.together import check_together, ranks_together
from rlkit.environments import Admission, EnvironmentConfig
from rlkit.generation import GeneratorConfig
from rlkit.models import ModelConfig, QuantKind, TuningKind
from rlkit.rewards import RewardConfig
from rlkit.schema import Between, Options, Schema
from rlkit.tasks import TaskConfig, task_of
from rlkit.tracking import TrackerConfig
from rlkit.training.divergence import EvalKL
from rlkit.training.memory_config import MemoryConfig
from rlkit.training.no_signal import StopConfig
from rlkit.training.optim import OptimConfig
from rlkit.types import Algorithm, RolloutKind, Setting

_MOST_COMPLETIONS = 1_000_000
"""Completions of one batch: 1 GB of texts, which no device samples in an hour."""


class Resume(StrEnum):
    """This choice says what to do when `run_dir` holds a run already."""

    never = "never"
    """Refuse: a run folder is never shared or overwritten."""
    auto = "auto"
    """Go on from its newest checkpoint that is intact; start afresh when there was none yet. Refuse
    when there are checkpoints and all of them are damaged."""
    must = "must"
    """Go on from its newest checkpoint that is intact; refuse when there is none."""


class DeviceChoice(StrEnum):
    """This choice says where the policy lives."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@dataclass(kw_only=True, slots=True)
class EvaluationConfig(Options):
    """These options set the held-out evaluation before, after and during training.

    It samples at the training temperature.
    """

    every: int = 0
    """Steps between evaluations, >= 0; 0 = only before the first and after the last step."""
    num_prompts: Annotated[int, Between(1, 100_000)] = 64
    """Held-out prompts, in [1, 100000]; the same ones each time, sampled with the same seeds."""
    samples_per_prompt: Annotated[int, Between(1, 10_000)] = 2
    """Samples of each, in [1, 10000]; intervals treat a prompt's samples as one cluster."""
    tasks: dict[str, Any] = field(default_factory=dict)
    """Further tasks to evaluate on, by a name of yours: `{sums: {name: chain_sum, digits: 2}}`.
    Each must know what a right answer is. Their numbers stand beside those of the own task."""
    kl: EvalKL = EvalKL.exact
    """exact, k3 or none: how KL(policy || reference) of these samples is measured, the same way for
    every objective. exact and k3 score the samples under both policies once more."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "evaluation.every", ">= 0", self.every)
        require(self.num_prompts >= 1, "evaluation.num_prompts", ">= 1", self.num_prompts)
        num_samples = self.samples_per_prompt
        require(num_samples >= 1, "evaluation.samples_per_prompt", ">= 1", num_samples)
        both = "evaluation.num_prompts * evaluation.samples_per_prompt"
        _check_completions(both, self.num_prompts, num_samples)
        for name, options in self.tasks.items():
            task_of(options, key=f"evaluation.tasks.{name}")


@dataclass(kw_only=True, slots=True)
class CheckpointConfig(Options):
    """These options say how often to save what a killed run needs to go on exactly."""

    every: int = 5
    """Steps between checkpoints, >= 1; the last step is always saved."""
    keep_last: int = 2
    """Checkpoints kept, >= 2: the newest may be the one a crash damaged."""
    keep_every: int = 0
    """Checkpoints whose step is a multiple of this are kept for ever, >= 0; 0 = none."""

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", ">= 1", self.every)
        require(self.keep_last >= 2, "checkpoint.keep_last", ">= 2", self.keep_last)
        require(self.keep_every >= 0, "checkpoint.keep_every", ">= 0", self.keep_every)


@dataclass(kw_only=True, slots=True)
class Config(Options):
    """This is the configuration of one run."""

    seed: int = 0
    """Run seed, in [0, 2**31); with step, prompt and sample it determines every random number."""
    steps: int = 12
    """Rollout batches to train on, >= 1."""
    prompts_per_step: Annotated[int, Between(1, 100_000)] = 6
    """Prompts of each rollout batch, in [1, 100000]; each is sampled `algorithm.group_size` times,
    and a step has at most 1000000 completions."""
    run_dir: str = MISSING
    """Folder of this run; must not exist, unless `resume` says otherwise."""
    resume: Resume = Resume.never
    """What to do when `run_dir` exists."""
    init_from: str | None = None
    """Folder of a completed run to start from: its model and what it learnt. The reference policy
    is the model at this start. None = start from `model` as it is."""
    accept_changed_files: bool = False
    """Go on with a run or a sweep although a data, reward or model file has changed since."""
    device: DeviceChoice = DeviceChoice.auto
    """auto = CUDA when there is a device."""
    gpus: Annotated[int, Between(1, 65_536)] = 1
    """Processes of this run, >= 1 and <= `prompts_per_step`: each has a device of its own, samples
    its share of the prompts and computes its share of the gradient."""
    model: ModelConfig = MISSING
    task: TaskConfig = MISSING
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    reward: RewardConfig = MISSING
    generator: GeneratorConfig = MISSING
    kl: KLConfig = MISSING
    ratio: RatioConfig = MISSING
    correction: CorrectionConfig = MISSING
    algorithm: AlgorithmConfig = MISSING
    optim: OptimConfig = field(default_factory=OptimConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    tracker: TrackerConfig = MISSING

    @property
    def prompts_per_rank(self) -> int:
        """Return the most prompts of a step that one process samples."""
        return -(-self.prompts_per_step // self.gpus)

    @property
    def ranks_together(self) -> int:
        """Return the ranks that sample as one engine; 1 = each samples for itself."""
        return ranks_together(self.generator, gpus=self.gpus, is_sharded=self.memory.is_sharded)

    @property
    def streams(self) -> bool:
        """Return whether the clock decides which turns of episodes share a batch."""
        return self.environment.admission is Admission.stream

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**31, "seed", "in [0, 2**31)", self.seed)
        require(self.steps >= 1, "steps", ">= 1", self.steps)
        require(self.prompts_per_step >= 1, "prompts_per_step", ">= 1", self.prompts_per_step)
        rule = f"in [1, prompts_per_step ({self.prompts_per_step})]: a group is never split"
        require(1 <= self.gpus <= self.prompts_per_step, "gpus", rule, self.gpus)
        minibatches = self.optim.minibatches
        rule = f"<= prompts_per_step ({self.prompts_per_step}): a group is never split"
        require(minibatches <= self.prompts_per_step, "optim.minibatches", rule, minibatches)
        both = "prompts_per_step * algorithm.group_size"
        _check_completions(both, self.prompts_per_step, self.algorithm.group_size)
        if isinstance(self.model, ModelConfig) and self.model.tuning is TuningKind.full:
            _check_full(self)
        if isinstance(self.generator, GeneratorConfig) and isinstance(self.model, ModelConfig):
            kinds = self.memory.quant.kind.value, self.model.tuning.value
            check_together(self.generator, self.gpus, *kinds, is_sharded=self.memory.is_sharded)
        if isinstance(self.generator, GeneratorConfig) and not self.generator.streams:
            rule = f"rounds with generator={option_of('generator', self.generator)}"
            admission = self.environment.admission
            require(admission is Admission.rounds, "environment.admission", rule, admission.value)
        if isinstance(self.algorithm, AlgorithmConfig) and self.algorithm.group_size != 1:
            _check_group_size(self)


def _check_group_size(config: Config) -> None:
    """Raise ConfigError when an algorithm that samples nothing is given a group."""
    rollouts = algorithm_of(config).rollouts
    rule = f"1 with algorithm={algorithm_name(config)}, which samples nothing"
    size = config.algorithm.group_size
    require(rollouts is RolloutKind.sampled, "algorithm.group_size", rule, size)


def _check_completions(key: str, num_prompts: int, num_samples: int) -> None:
    """Raise ConfigError when a batch of completions is larger than a machine can mean."""
    got = f"{num_prompts} * {num_samples}"
    require(num_prompts * num_samples <= _MOST_COMPLETIONS, key, f"<= {_MOST_COMPLETIONS}", got)


def _check_full(config: Config) -> None:
    """Raise ConfigError when all weights train and an option needs an adapter or a frozen model."""
    having, kind = "with model.tuning=full", config.memory.quant.kind
    require(kind is QuantKind.none, "memory.quant.kind", f"none {having}", kind.value)
    critic = algorithm_of(config).critic_rate is not None
    name = option_of("algorithm", config.algorithm)
    require(not critic, "algorithm", f"one without a critic {having}", name)
    if isinstance(config.generator, GeneratorConfig):
        try:
            config.generator.check_full_weights()
        except ValueError as error:
            raise ConfigError(str(error)) from error


def setting_of(config: Config) -> Setting:
    """Return the facts of a run that an algorithm's factory may depend on."""
    return Setting(
        group_size=config.algorithm.group_size,
        max_completion_length=config.task.max_completion_length,
        updates_per_batch=config.optim.updates_per_batch,
        microbatched=config.memory.tokens_per_microbatch != 0 or config.gpus > 1,
    )


def algorithm_of(config: Config) -> Algorithm:
    """Return the algorithm of a run; raises ConfigError when its axes do not fit together."""
    try:
        return build(Objective.of(config), setting_of(config))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def register() -> None:
    """Put every schema into Hydra's config store; idempotent."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for schema in schemas():
        store.store(group=f"schema/{schema.group}", name=schema.name, node=schema.node)
    store.store(group="schema/optim", name="optim", node=OptimConfig)
    store.store(group="schema/memory", name="memory", node=MemoryConfig)


def schemas() -> list[Schema]:
    """Return the dataclass of every option of every group."""
    packages = (algorithms, generation, models, rewards, tabular, tasks, tracking)
    return [schema for package in packages for schema in package.SCHEMAS]


def algorithm_name(config: Config) -> str:
    """Return the chosen preset of the algorithm (gspo, xpo), not the class that it sets up."""
    return config.algorithm.preset or option_of("algorithm", config.algorithm)


def option_of(group: str, chosen: object) -> str:
    """Return the name of the option of `group` whose values `chosen` holds: grpo, vllm_server, ...

    An algorithm from outside is called by its `fn`.
    """
    names = (s.name for s in schemas() if s.group == group and s.node is type(chosen))
    return next(names, "") or str(getattr(chosen, "fn", type(chosen).__name__))


def load(composed: DictConfig) -> Config:
    """Return the checked `Config` of a composed Hydra config; raises ConfigError with one line."""
    refuse_unknown_keys(composed)
    config = checked(composed)
    if not isinstance(config, Config):
        raise ConfigError(f"the root config must follow the schema `Config`, got {type(config)}")
    algorithm_of(config)
    return config


def flatten(config: Config) -> dict[str, Any]:
    """Return `{"optim.learning_rate": 0.001, ...}`: every leaf by its full key."""
    return dict(leaves(asdict(config)))


def to_yaml(config: Config) -> str:
    """Return the resolved configuration as YAML, loadable without rlkit."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def leaves(value: object, *, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (full key, value) of every leaf of nested mappings."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from leaves(child, prefix=f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
