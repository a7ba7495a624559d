"""`rlkit judge-check` measures a judge on pairs with a known answer before it decides a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

SUMMARY = "a judge on pairs with a known answer: agreement, bias, cost of the run"
_USAGE = """\
rlkit judge-check reward=judge reward.functions.judge.options.url=... [OVERRIDES] [OPTIONS]

  pairs=FILE             rows with prompt, chosen, rejected (.jsonl, .json, .parquet); without it,
                         gold answers of the task against those of other rows
  count=64               pairs to ask about
  least_agreement=0.6    exit code 1 when the judge agrees with gold on a smaller share
  least_consistency=0.5  exit code 1 when its verdict is the same in both orders less often

Each pair is asked in both orders. OVERRIDES are those of the run that the judge is for."""
_OPTIONS = {"pairs": "", "count": "64", "least_agreement": "0.6", "least_consistency": "0.5"}


def run(arguments: Sequence[str]) -> int:
    """Print the report; 0 = the judge is good enough, 1 = it is not."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return 0
    from rlkit.cli import UsageError
    from rlkit.cli.judge_check_run import NotGoodEnough, lines
    from rlkit.config import ConfigError

    options, overrides = dict(_OPTIONS), []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name in _OPTIONS:
            options[name] = value
        else:
            overrides.append(argument)
    try:
        for line in lines(
            overrides,
            pairs=options["pairs"],
            count=_number("count", options["count"], 1.0, 1e9),
            least_agreement=_number("least_agreement", options["least_agreement"], 0.0, 1.0),
            least_consistency=_number("least_consistency", options["least_consistency"], 0.0, 1.0),
        ):
            print(line)
    except NotGoodEnough as error:
        print(f"rlkit: {error}", file=sys.stderr)
        return 1
    except (ConfigError, ValueError) as error:
        raise UsageError(str(error)) from error
    return 0


def _number(name: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ValueError(f"{name} must be a number in [{low:g}, {high:g}], got {text}")
    return value
