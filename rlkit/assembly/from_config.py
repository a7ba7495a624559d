"""This module reads what every kind of policy's training loop takes from the configuration."""

from __future__ import annotations

from rlkit.algorithms import GroupFilter
from rlkit.assembly.identity import identity_hash
from rlkit.config import Config, algorithm_of
from rlkit.generation import sample_seed
from rlkit.models.config import Switch
from rlkit.ranks import ALONE, Ranks
from rlkit.training.learner import Learner
from rlkit.training.optim import build_optimizer
from rlkit.training.schedule import RunSchedule
from rlkit.training.sharded import Shares
from rlkit.training.update import TrainState, UpdateSettings
from rlkit.types import Algorithm, RolloutKind

# Streams of seeds that must not meet: training samples use steps >= 0.
EVALUATION_SEED = -1
_SHUFFLE_PROMPT = -1


def new_state(
    learner: Learner,
    config: Config,
    algorithm: Algorithm,
    *,
    critic_prefix: str,
    shares: Shares | None = None,
) -> TrainState:
    """Return the state before the first step.

    Args:
        learner: The tensors that train.
        config: The run's configuration.
        algorithm: It says at which rate its critic learns, if it has one.
        critic_prefix: The names of the critic's leaves begin with it.
        shares: The ranks' shares of what trains; None = every rank keeps all.

    Returns:
        The state of step 0, with fresh optimiser moments.
    """
    factor = 1.0
    if algorithm.critic_rate is not None:
        factor = algorithm.critic_rate / config.optim.learning_rate
    optimizer = build_optimizer(
        learner.named_parameters(),
        config.optim,
        rate_factor=lambda name: factor if name.startswith(critic_prefix) else 1.0,
        shares=shares,
    )
    return TrainState(learner=learner, optimizer=optimizer)


def update_settings(config: Config, ranks: Ranks = ALONE) -> UpdateSettings:
    """Return how a batch is split and stepped on; without a plan it stays whole."""
    return UpdateSettings(
        optim=config.optim,
        total_updates=config.steps * config.optim.updates_per_batch,
        temperature=_temperature(config),
        tokens_per_microbatch=config.memory.tokens_per_microbatch or 0,
        share_prompts=config.model.shared_prefix is not Switch.off,
        ranks=ranks,
    )


def _temperature(config: Config) -> float:
    """Return the temperature of the logps that train: the sampler's, or 1 for what is given."""
    sampled = algorithm_of(config).rollouts is RolloutKind.sampled
    return config.generator.sampling.temperature if sampled else 1.0


def schedule_of(config: Config) -> RunSchedule:
    """Return when the loop evaluates, saves and ends."""
    return RunSchedule(
        num_steps=config.steps,
        evaluate_every=config.evaluation.every,
        checkpoint_every=config.checkpoint.every,
        keep_last=config.checkpoint.keep_last,
        keep_every=config.checkpoint.keep_every,
        config_hash=identity_hash(config),
    )


def resamples(config: Config) -> bool:
    """Return whether groups without a signal are replaced."""
    return config.algorithm.group_filter is GroupFilter.resample


def shuffle_seed(config: Config, step: int, epoch: int) -> int:
    """Return the seed that splits a batch into minibatches."""
    return sample_seed(config.seed, step, _SHUFFLE_PROMPT, epoch)
