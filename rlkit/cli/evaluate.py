"""`rlkit eval` samples held-out prompts and says how many answers are right, without training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

SUMMARY = "success of a run or a model on a task, paired against its base"
_USAGE = """\
rlkit eval --run RUN [OVERRIDES]                what a run learnt, on its own task
rlkit eval --run RUN task=gsm8k [OVERRIDES]     on another task
rlkit eval --model SOURCE task=T [OVERRIDES]    a model as it is

OVERRIDES are those of a run (`task.eval_size=1319 generator=vllm`)."""


def run(arguments: Sequence[str]) -> int:
    """Evaluate, print a table, and write the numbers where --out says."""
    from rlkit.cli import UsageError

    parser = argparse.ArgumentParser(
        prog="rlkit eval", usage=_USAGE, description=SUMMARY, allow_abbrev=False
    )
    parser.add_argument("--run", type=Path, help="the folder of a completed run")
    parser.add_argument("--model", help="starter, a hub id, a folder or a .gguf file")
    parser.add_argument(
        "--against", choices=("base", "none"), default="base", help="what --run is paired with"
    )
    parser.add_argument("--samples", type=int, default=4, help="samples of each prompt")
    parser.add_argument("--prompts", type=int, default=0, help="held-out prompts; 0 = all")
    parser.add_argument("--out", type=Path, help="a .json file for the numbers")
    options, overrides = parser.parse_known_args(list(arguments))
    if (options.run is None) == (options.model is None):
        raise UsageError("rlkit eval must be given --run or --model, one of them")
    for name, least in (("samples", 1), ("prompts", 0)):
        value = getattr(options, name)
        if value < least:
            raise UsageError(f"--{name} must be >= {least}, got {value}")
    if options.out is not None and options.out.suffix != ".json":
        raise UsageError(f"--out must end in .json, got {options.out}")
    if flags := [o for o in overrides if o.startswith("-")]:
        raise UsageError(
            f"{flags[0]} is not an option of rlkit eval (rlkit eval --help lists them)"
        )
    # After the arguments: `--help` must not wait for torch and transformers.
    from rlkit.cli.evaluate_run import evaluate
    from rlkit.config import ConfigError

    try:
        evaluate(options, overrides)
    except (ConfigError, ValueError) as error:
        raise UsageError(str(error)) from error
    return 0
