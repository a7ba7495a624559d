"""`rlkit check` says what a run would take without running it; a budget takes the GPU's place."""

from __future__ import annotations

import sys
from collections.abc import Sequence

SUMMARY = "memory plan, rows and rewards of a run, before loading; what its base model earns"
_USAGE = """\
rlkit check [OVERRIDES]                         what a run takes here
rlkit check memory.budget=24GB [OVERRIDES]      what it would take on such a card; no GPU needed
rlkit check --samples=K [OVERRIDES]             also load it, and score K samples of the base model
rlkit check --table                             the headline models, their budgets and plans

OVERRIDES are those of a run. Exit code 1 when it does not fit; the message names the cheapest
change that would make it fit. Rows that cannot be used, tags that rewards do not see and gold
answers that earn nothing are found with the tokenizer alone."""


def run(arguments: Sequence[str]) -> int:
    """Print the plan; 0 = it fits, 1 = it does not."""
    if {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return 0
    from rlkit.cli import UsageError
    from rlkit.cli.check_run import headline_table, plan_lines, sample_lines
    from rlkit.config import ConfigError
    from rlkit.plan.choose import DoesNotFit

    if list(arguments) == ["--table"]:
        for line in headline_table():
            print(line)
        return 0
    try:
        overrides, count = _samples(arguments)
        for line in plan_lines(overrides):
            print(line)
        for line in sample_lines(overrides, count) if count else ():
            print(line)
    except DoesNotFit as error:
        print(f"rlkit: {error}", file=sys.stderr)
        return 1
    except (ConfigError, ValueError) as error:
        raise UsageError(str(error)) from error
    return 0


def _samples(arguments: Sequence[str]) -> tuple[list[str], int]:
    """Return the overrides, and how many samples are asked for; 0 = none."""
    flags = [a for a in arguments if a.startswith("--samples")]
    overrides = [a for a in arguments if a not in flags]
    if not flags:
        return overrides, 0
    count = flags[-1].partition("=")[2]
    if not count.isdigit() or int(count) < 1:
        raise ValueError(f"--samples must be a number >= 1 (--samples=32), got {count!r}")
    return overrides, int(count)
