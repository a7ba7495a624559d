"""The folder of one run is never shared, never overwritten and always says where the run stands."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from rlkit.assembly.identity import CURES, before_it_was, identity, identity_hash, is_identity
from rlkit.config import Config, ConfigError, Resume, leaves
from rlkit.launch.masked import masked_yaml, redactor_of
from rlkit.runtime.files import remove_litter
from rlkit.runtime.redact import Redactor
from rlkit.tracking.base import Outcome, Status
from rlkit.tracking.files import naming, write_atomic
from rlkit.tracking.holding import InUse, hold, this_process
from rlkit.training import checkpoint
from rlkit.training.state_file import read_state


@contextmanager
def claim(config: Config, run_dir: Path) -> Iterator[list[str]]:
    """Hold `run_dir` for this process; writes `config.yaml` and a running `status.json`.

    Yields lines about what was found there. What killed processes left half-written is deleted.

    Raises ConfigError when another process holds it, or when it belongs to a run with another
    configuration. The lock goes with the process, however it ends.
    """
    with naming(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            with naming(run_dir):
                notes = held.enter_context(hold(run_dir))
        except InUse as holder:
            raise ConfigError(f"run_dir is in use by {holder}: {run_dir}") from holder
        if config.resume is not Resume.never:
            notes += check_same_run(config, run_dir)
        with naming(run_dir):
            left = remove_litter(run_dir, subfolders=("checkpoints", "completions", "rollouts"))
        if left:
            notes.append(f"deleted {len(left)} half-written files or folders of a killed run")
        write_atomic(run_dir / "config.yaml", masked_yaml(config).encode())
        write_status(run_dir, Status.running, message="")
        yield notes


def check_checkpoints(config: Config, run_dir: Path) -> None:
    """Raise ConfigError when there is nothing intact to go on from and step 0 is not the answer.

    Hashes are checked, nothing is loaded: a model need not be read to know that it is in vain.
    """
    if config.resume is Resume.never:
        return
    newest, problems = checkpoint.find_newest(run_dir / "checkpoints")
    if newest is not None:
        return
    if problems:
        raise ConfigError(
            f"run_dir must hold an intact checkpoint to go on from, got {len(problems)} damaged in "
            f"{run_dir} ({problems[0]}); delete its folder checkpoints to begin at step 0"
        )
    if config.resume is Resume.must:
        raise ConfigError(
            f"run_dir must be a run with checkpoints, as resume=must says, got {run_dir}"
        )


def check_same_run(config: Config, run_dir: Path) -> list[str]:
    """Compare with the run being resumed; returns lines about what may change and did.

    An option that only leaves rows out may be given on resume: it is the cure of a run that stopped
    at such a row. An option that the run's version did not know had its default.

    Raises ConfigError naming the first option that differs and must not.
    """
    file = run_dir / "config.yaml"
    if not file.exists():
        return []
    try:
        saved = dict(leaves(yaml.safe_load(file.read_text())))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        return _check_by_hash(config, run_dir, " ".join(str(error).split())[:200])
    if not saved.keys() & {"seed", "steps"}:
        return _check_by_hash(config, run_dir, "it holds no configuration")
    now = dict(leaves(yaml.safe_load(masked_yaml(config))))
    redactor = redactor_of(config)
    for key in dict.fromkeys([*identity(config), *filter(is_identity, saved)]):
        before, after = (
            values[key] if key in values else before_it_was(config, key) for values in (saved, now)
        )
        before = redactor.leaf(key, before)  # older runs kept secrets as they were
        if before == after or after in CURES.get(key, ()):
            continue
        if _newest_hash(run_dir) == identity_hash(config):  # the file was cut, not the run another
            return [f"{file} is damaged at {key} and is written anew"]
        raise ConfigError(
            f"{key} must be {before} as in the run being resumed ({run_dir}), got {after}"
        )
    return []


def _check_by_hash(config: Config, run_dir: Path, reason: str) -> list[str]:
    """Compare with the newest checkpoint, which knows a hash of the configuration it is of."""
    file, newest = run_dir / "config.yaml", _newest_hash(run_dir)
    if newest not in (None, identity_hash(config)):
        raise ConfigError(
            f"{file} cannot be read ({reason}), and the run's checkpoints are of another "
            "configuration"
        )
    return [f"{file} could not be read ({reason}) and is written anew"]


def _newest_hash(run_dir: Path) -> str | None:
    """Return the hash of the configuration that the newest intact checkpoint is of."""
    newest, _ = checkpoint.find_newest(run_dir / "checkpoints")
    return None if newest is None else read_state(newest)[0].config_hash


def write_outcome(run_dir: Path, outcome: Outcome) -> None:
    """Record how the run ended."""
    write_status(run_dir, outcome.status, message=outcome.message)


def write_status(run_dir: Path, status: Status, *, message: str) -> None:
    """Write `status.json`: status, one line of why, process, its machine and cluster job, time."""
    message = Redactor.of_process().text(message)
    writer = this_process()
    record = {"status": status.value, "message": message, "time": time.time()}
    record |= {"pid": writer.pid, "host": writer.host, "cluster_job": writer.job}
    write_atomic(run_dir / "status.json", (json.dumps(record, indent=2) + "\n").encode())
