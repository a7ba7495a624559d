"""This module reads the options of a task that stands inside other options, such as a mixture."""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlkit.tasks.config import TaskConfig
from rlkit.tasks.more_config import SCHEMAS


def task_of(options: object, *, key: str) -> TaskConfig:
    """Return the checked options of a task.

    Args:
        options: A mapping with `name` and whatever of the task's options differs from its defaults.
        key: Where they stand, for messages.

    Returns:
        The options, of the class that `name` means.

    Raises:
        ValueError: There is no such task or option, or a value breaks a rule; one line.
    """
    if isinstance(options, TaskConfig):
        return options
    kinds = {schema.name: schema.node for schema in SCHEMAS}
    if not isinstance(options, Mapping) or not isinstance(options.get("name"), str):
        raise ValueError(f"{key} must hold the name of a task and its options, got {options}")
    name = options["name"]
    if name not in kinds:
        raise ValueError(f"{key}.name must be one of {', '.join(kinds)}, got {name}")
    try:
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kinds[name]), options))
    except OmegaConfBaseException as error:
        raise ValueError(f"{key}: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    assert isinstance(found, TaskConfig)
    return found
