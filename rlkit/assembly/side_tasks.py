"""A run may be evaluated on further tasks, beside the one that it trains on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rlkit.assembly.prompts import render_prompts
from rlkit.assembly.rows import usable_rows
from rlkit.config import Config, ConfigError
from rlkit.generation import sampling_config
from rlkit.models.load import BaseModel
from rlkit.models.special import stops_of
from rlkit.runtime.say import Say
from rlkit.tasks import Task, build_task, task_of
from rlkit.training.evaluate import SideTask


def side_tasks(config: Config, base: BaseModel, *, say: Say) -> Mapping[str, SideTask]:
    """Return the tasks of `evaluation.tasks`, their held-out prompts rendered.

    Args:
        config: The run's configuration; its own task is the longest, for which memory is planned.
        base: The model, for its tokenizer and chat template.
        say: Gets a line for rows that were left out.

    Returns:
        The tasks by name.

    Raises:
        ConfigError: A task cannot tell right from wrong, its rows are longer than the run's own, or
            it has another environment.
    """
    found = {}
    for name, options in config.evaluation.tasks.items():
        key = f"evaluation.tasks.{name}"
        chosen = task_of(options, key=key)
        for limit in ("max_prompt_length", "max_completion_length"):
            most, value = getattr(config.task, limit), getattr(chosen, limit)
            if value > most:
                raise ConfigError(
                    f"{key}.{limit} must be <= {most}, as task.{limit} is, got {value}"
                )
        task = build_task(chosen)
        _check_environment(config, task, key)
        success = task.success
        if success is None:
            raise ConfigError(
                f"{key}.name must be a task that knows what a right answer is, got {task.name}"
            )
        own = replace(config, task=chosen)
        task = usable_rows(own, task, base.tokenizer, say=say).task
        size = min(config.evaluation.num_prompts, task.eval.size or 0)
        sampling = sampling_config(
            config.generator.sampling,
            max_completion_length=task.max_completion_length,
            stop=task.stop,
        )
        stops = stops_of(base.tokenizer, base.stop_ids, sampling.stop)
        prompts = render_prompts(task, task.eval, range(size), base, own)
        sampling = sampling._replace(stop=stops.strings)
        found[name] = SideTask(prompts, sampling, success, task.answer)
    return found


def _check_environment(config: Config, task: Task, key: str) -> None:
    """Refuse a task whose turns nobody would answer, or the run's environment would."""
    own = config.environment.spec(build_task(config.task).environment)
    if task.environment != own:
        has, wanted = (
            "no environment" if spec is None else f"the environment {spec.fn}"
            for spec in (task.environment, own)
        )
        raise ConfigError(
            f"{key}.name must be a task with {wanted}, as the run's own, got {task.name} with {has}"
        )
