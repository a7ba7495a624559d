"""This module makes the environment of a run, checked against the model's chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlkit.config import Config
from rlkit.environments import EnvironmentConfig
from rlkit.environments.pool import EnvironmentPool
from rlkit.environments.rounds import EpisodeGenerator
from rlkit.environments.splice import Splicer
from rlkit.tasks import Task
from rlkit.types import Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage has what episodes need beside a generator of turns."""

    pool: EnvironmentPool
    """The workers that answer the model's turns."""
    splicer: Splicer
    """The text between two turns."""
    config: EnvironmentConfig
    max_prompt_length: int

    def over(
        self,
        turns: Generator,
        decode: Callable[[Sequence[int]], str],
        pulse: Callable[[], None],
    ) -> Generator:
        """Return a generator of episodes whose turns come from `turns`.

        `pulse` is called while the environment works; what it raises ends the wait.
        """
        return EpisodeGenerator(
            turns,
            self.pool,
            self.splicer,
            config=self.config,
            decode=decode,
            max_prompt_length=self.max_prompt_length,
            pulse=pulse,
        )


def environment_pool(config: Config, task: Task, resources: ExitStack) -> EnvironmentPool | None:
    """Start the workers of a task's environment, which `resources` ends; None for single turns."""
    if task.environment is None:
        return None
    pool = EnvironmentPool(task.environment, config.environment)
    resources.callback(pool.close)
    return pool


def new_stage(
    pool: EnvironmentPool | None,
    tokenizer: PreTrainedTokenizerBase,
    config: EnvironmentConfig,
    task: Task,
) -> Stage | None:
    """Return what episodes need; None for single turns.

    Args:
        pool: The environment's workers, which have loaded it.
        tokenizer: The model's tokenizer, with its chat template.
        config: The limits of an episode.
        task: Its prompts have a limit as well.

    Raises:
        ValueError: The chat template has no text between turns.
    """
    if pool is None:
        return None
    splicer = Splicer(tokenizer, roles=pool.roles, history=config.history, tools=pool.tools)
    return Stage(
        pool=pool, splicer=splicer, config=config, max_prompt_length=task.max_prompt_length
    )
