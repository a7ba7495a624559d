"""This module makes the environment of a run, checked against the model's chat template."""

from __future__ import annotations

from contextlib import ExitStack

from transformers import PreTrainedTokenizerBase

from rlkit.config import Config
from rlkit.environments import EnvironmentConfig
from rlkit.environments.pool import EnvironmentPool
from rlkit.environments.splice import Splicer
from rlkit.tasks import Task


def environment_pool(config: Config, task: Task, resources: ExitStack) -> EnvironmentPool | None:
    """Start the workers of a task's environment, which `resources` ends; None for single turns."""
    if task.environment is None:
        return None
    pool = EnvironmentPool(task.environment, config.environment)
    resources.callback(pool.close)
    return pool


def new_splicer(
    pool: EnvironmentPool | None, tokenizer: PreTrainedTokenizerBase, config: EnvironmentConfig
) -> Splicer | None:
    """Return the text between turns as ids; raises ValueError when the template has none."""
    if pool is None:
        return None
    return Splicer(tokenizer, roles=pool.roles, history=config.history, tools=pool.tools)
