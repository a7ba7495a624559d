"""A task has prompts to train on, others to evaluate on, and a way to judge answers.

base                    what a task is
config, more_config     options of each
generated, synthetic    endless generated tasks with disjoint halves
agents                  generated tasks of several turns
data, rows              GSM8K and data sets of your own
pairs                   summaries and preferences
countdown, reasoning    games and reasoning-gym's problems
mix                     several tasks in one
targets                 completions to imitate
conversation            messages to text, with nothing lost
survey                  every row rendered once before the first step
order                   which examples a step sees
check                   do the rewards pay for right answers? asked before training
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rlkit.environments.config import EnvironmentConfig
from rlkit.rewards import RewardSpec
from rlkit.tasks.agents import calculator, guess_number, lookup
from rlkit.tasks.base import Example, Message, PromptStyle, Split, SplitName, Task
from rlkit.tasks.config import (
    BadRows,
    CalculatorConfig,
    ChainSumConfig,
    CompareDecimalsConfig,
    DatasetConfig,
    EchoConfig,
    GSM8KConfig,
    GuessNumberConfig,
    LookupConfig,
    MaxOfNConfig,
    Overlong,
    RevWordsConfig,
    TaskConfig,
)
from rlkit.tasks.countdown import countdown
from rlkit.tasks.mix import mix
from rlkit.tasks.more_config import (
    SCHEMAS,
    CountdownConfig,
    MixConfig,
    PreferencesConfig,
    ReasoningGymConfig,
    TLDRConfig,
)
from rlkit.tasks.order import train_indices
from rlkit.tasks.pairs import preferences, tldr
from rlkit.tasks.reasoning import reasoning_gym
from rlkit.tasks.rows import dataset, gsm8k
from rlkit.tasks.synthetic import chain_sum, compare_decimals, echo, max_of_n, rev_words
from rlkit.tasks.task_options import task_of

__all__ = [
    "SCHEMAS",
    "BadRows",
    "Example",
    "Message",
    "Overlong",
    "PromptStyle",
    "Split",
    "SplitName",
    "Task",
    "TaskConfig",
    "build_task",
    "task_of",
    "train_indices",
    "with_environment",
]

_BUILDERS: Mapping[type[TaskConfig], Callable[[Any], Task]] = {
    EchoConfig: echo,
    RevWordsConfig: rev_words,
    MaxOfNConfig: max_of_n,
    ChainSumConfig: chain_sum,
    CompareDecimalsConfig: compare_decimals,
    CalculatorConfig: calculator,
    GuessNumberConfig: guess_number,
    LookupConfig: lookup,
    GSM8KConfig: gsm8k,
    DatasetConfig: dataset,
    CountdownConfig: countdown,
    TLDRConfig: tldr,
    PreferencesConfig: preferences,
    ReasoningGymConfig: reasoning_gym,
}


def build_task(config: TaskConfig) -> Task:
    """Return the task that `config` describes, its rows read and checked.

    Raises ValueError with one line that names key, row and column.
    """
    if isinstance(config, MixConfig):
        return mix(config, build_task)
    if type(config) not in _BUILDERS:
        raise ValueError(f"task must be one of the group `task`, got {type(config).__name__}")
    return _BUILDERS[type(config)](config)


def with_environment(task: Task, config: EnvironmentConfig) -> Task:
    """Return `task` with the environment that it or `config` names, and its reward.

    Raises ValueError when the options do not fit the task.
    """
    spec = config.spec(task.environment)
    if spec is None:
        return task
    if task.style is PromptStyle.raw:
        raise ValueError(
            f"environment.fn must be empty with a task of plain text, whose turns have no end, got "
            f"{spec.fn} with task {task.name}"
        )
    paid = RewardSpec("environment", "environment")
    rewards = task.rewards if paid in task.rewards else (*task.rewards, paid)
    return replace(task, environment=spec, rewards=rewards)
