"""This module checks that model, data and reward functions are there, without loading them."""

from __future__ import annotations

from contextlib import closing

import torch

from rlkit.assembly.init_from import started
from rlkit.assembly.rewards import reward_pool
from rlkit.config import Config
from rlkit.models.source import check
from rlkit.tasks import build_task, with_environment


def check_inputs(config: Config) -> None:
    """Read the rows, import the reward functions and look at the model's files.

    Raises ValueError with one line that names the key. Causes are a missing path, wrong rows or
    columns, a function that cannot be imported, and weights that are cut off.
    """
    config = started(config, say=lambda _: None)
    check(config.model)
    task = with_environment(build_task(config.task), config.environment)
    with closing(reward_pool(config, task, torch.device("cpu"))) as pool:
        pool.verify()
