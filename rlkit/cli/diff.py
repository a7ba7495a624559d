"""`rlkit diff` says where two runs of one configuration part first, or that they are the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SUMMARY = "the first step, prompt and token at which two runs of one configuration part"
_USAGE = """\
rlkit diff A B

Compares two runs step by step, bit for bit: evaluations, tokens, logps, rewards, metrics, weights.
Times, memory and speed do not count. Steps that only one of them has are left out. Checkpoints and
rollouts are compared where both still have them: checkpoint.keep_every=1 keeps all.

The exit code is 0 when nothing differs, 1 when something does."""


def run(arguments: Sequence[str]) -> int:
    """Print one line; nothing is written."""
    if {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return 0
    from rlkit.cli import UsageError
    from rlkit.tracking.summary import printable

    if len(arguments) != 2:
        raise UsageError(f"rlkit diff must have two run folders, got {len(arguments)}")
    for argument in arguments:
        if not (Path(argument) / "metrics.jsonl").is_file():
            raise UsageError(f"{argument} is no run folder: it has no metrics.jsonl")
    from rlkit.training.first_difference import first_difference

    found = first_difference(Path(arguments[0]), Path(arguments[1]))
    same = f"{found.steps} steps are equal bit for bit"
    if found.step is None:
        print(f"{same}; nothing differs" if found.steps else "the runs have no step in common")
        return 0 if found.steps else 1
    print(printable(f"{same}; the runs part in step {found.step}: {found.what}"))
    return 1
