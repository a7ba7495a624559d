"""`rlkit [overrides]` trains; `rlkit -m [overrides]` sweeps.

Everything is checked before job 0.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from rlkit.cli import UsageError
from rlkit.config import Config, ConfigError, load
from rlkit.launch.composing import register
from rlkit.launch.outside import offer_algorithms
from rlkit.launch.preflight import plan
from rlkit.tracking import TrackingError

SUMMARY = "train (the default command)"


def run(arguments: Sequence[str]) -> int:
    """Check every job, then run them; the exit code of the worst job."""
    register()
    try:
        checked = plan(arguments)
        if checked.multirun and checked.jobs:
            from rlkit.launch.sweep import run_sweep

            return run_sweep(checked, arguments)
    except (ConfigError, TrackingError) as error:
        raise UsageError(str(error)) from error
    sys.argv = ["rlkit", *offer_algorithms(arguments)]
    if checked.jobs and not checked.hydra_overrides:
        # Hydra would compose the job twice more, which takes a second, and add nothing.
        return _train(checked.jobs[0].config)
    codes: list[int] = []

    def job(composed: DictConfig) -> None:
        codes.append(_train(load(composed)))

    main = hydra.main(version_base="1.3", config_path="pkg://rlkit.conf", config_name="config")
    main(job)()
    return max(codes, default=0)


def _train(config: Config) -> int:
    from rlkit.launch.job import run_job

    return run_job(config, run_dir=Path(config.run_dir))
