"""What the training loop takes from the configuration, whatever kind of policy it trains."""

from __future__ import annotations

from rlkit.algorithms import GroupFilter
from rlkit.algorithms.ppo import PPOConfig
from rlkit.config import Config, identity_hash
from rlkit.generation import sample_seed
from rlkit.models.config import Switch
from rlkit.training.optim import build_optimizer
from rlkit.training.trainer import Schedule
from rlkit.training.update import Learner, TrainState, UpdateSettings
from rlkit.types import Setting

# Streams of seeds that must not meet: training samples use steps >= 0.
EVALUATION_SEED = -1
_SHUFFLE_PROMPT = -1


def setting_of(config: Config) -> Setting:
    """What an algorithm's factory may depend on."""
    return Setting(
        group_size=config.algorithm.group_size,
        max_completion_length=config.task.max_completion_length,
        updates_per_batch=config.optim.updates_per_batch,
        microbatched=config.memory.tokens_per_microbatch > 0,
    )


def new_state(learner: Learner, config: Config, *, critic_prefix: str) -> TrainState:
    """The state before the first step; leaves named `critic_prefix...` learn at PPO's own rate."""
    factor = 1.0
    if isinstance(config.algorithm, PPOConfig):
        factor = config.algorithm.value_lr / config.optim.learning_rate
    optimizer = build_optimizer(
        learner.named_parameters(),
        config.optim,
        rate_factor=lambda name: factor if name.startswith(critic_prefix) else 1.0,
    )
    return TrainState(learner=learner, optimizer=optimizer)


def update_settings(config: Config) -> UpdateSettings:
    """How a batch is split and stepped on."""
    return UpdateSettings(
        optim=config.optim,
        total_updates=config.steps * config.optim.updates_per_batch,
        temperature=config.generator.sampling.temperature,
        tokens_per_microbatch=config.memory.tokens_per_microbatch,
        share_prompts=config.model.shared_prefix is not Switch.off,
    )


def schedule_of(config: Config) -> Schedule:
    """When the loop evaluates, saves and ends."""
    return Schedule(
        num_steps=config.steps,
        evaluate_every=config.evaluation.every,
        checkpoint_every=config.checkpoint.every,
        keep_last=config.checkpoint.keep_last,
        config_hash=identity_hash(config),
    )


def resamples(config: Config) -> bool:
    """Whether groups without a signal are replaced."""
    return config.algorithm.group_filter is GroupFilter.resample


def shuffle_seed(config: Config, step: int, epoch: int) -> int:
    """The seed that splits a batch into minibatches."""
    return sample_seed(config.seed, step, _SHUFFLE_PROMPT, epoch)
