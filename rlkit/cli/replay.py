"""`rlkit replay` shows what several algorithms would learn from one saved batch of a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlkit.schema import Options

SUMMARY = "compare the gradients of several algorithms on one saved batch of a run"
_USAGE = """\
rlkit replay run_dir=runs/x [algorithms=[grpo,rloo,ppo,online_dpo]] [step=5]

Scores the batch that the run sampled after `step` steps (default: the newest one saved) with each
algorithm, at the parameters that sampled it: loss, norm of the policy's gradient,
tokens used, and the cosines between the gradients. Nothing is sampled or updated.
Algorithms are the options of conf/algorithm with their own kl, ratio and correction."""


@dataclass(kw_only=True, slots=True)
class ReplayOptions(Options):
    """This record holds the command's arguments."""

    run_dir: str = MISSING
    """Folder of the run."""
    algorithms: list[str] = field(default_factory=lambda: ["grpo", "rloo", "ppo", "online_dpo"])
    """Options of conf/algorithm; each comes with its own kl, ratio and correction."""
    step: int | None = None
    """Steps completed when the batch was sampled, >= 0; None = the newest saved batch."""


def run(arguments: Sequence[str]) -> int:
    """Print the tables and write `run_dir/replay-step-000005.json`."""
    if {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return 0
    from rlkit.cli import UsageError
    from rlkit.cli.replay_run import compare
    from rlkit.tracking import TrackingError

    options = parse(arguments)
    try:
        compare(Path(options.run_dir), options.algorithms, step=options.step)
    except TrackingError as error:
        print(f"rlkit: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        raise UsageError(str(error)) from error
    return 0


def parse(arguments: Sequence[str]) -> ReplayOptions:
    """Return the options of `key=value` arguments; raises UsageError with one line."""
    from rlkit.cli import UsageError
    from rlkit.config import did_you_mean

    known = [f.name for f in fields(ReplayOptions)]
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if not equals:
            raise UsageError(f"arguments must be key=value, got {argument}")
        if name not in known:
            meant = did_you_mean(name, known)
            raise UsageError(f"{name} is not an option{meant}; there are {', '.join(known)}")
    try:
        merged = OmegaConf.merge(ReplayOptions, OmegaConf.from_cli(list(arguments)))
        if OmegaConf.is_missing(merged, "run_dir"):
            raise UsageError("run_dir must be given: rlkit replay run_dir=runs/x")
        options = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UsageError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    except yaml.YAMLError as error:
        raise UsageError(" ".join(str(error).split())) from error
    assert isinstance(options, ReplayOptions)
    names = options.algorithms
    if not names or len(set(names)) != len(names):
        raise UsageError(f"algorithms must be different names, at least one, got {names}")
    return options
