"""This module reads the folders and `key=value` options of `rlkit report` and `rlkit compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from rlkit.cli import UsageError

if TYPE_CHECKING:
    from rlkit.report.build import ReportOptions
    from rlkit.report.measure import At

HELP = """\
  baseline=NAME    variant the others are compared with (default: the first); its whole name, or
                   overrides that it alone has
  panel=KEY,KEY    options that split the study into panels compared apart, or none (default: the
                   task where it differs; else the numbers among the options that differ)
  metric=NAME      success (last held-out evaluation), auc (area under its curve), eval/NAME, or a
                   metric of the steps
  at=samples       compare at equal samples, or at equal seconds of training, not at the end
  margin=0.02      differences within it count as similar; fix it before looking"""


def parse(arguments: Sequence[str], *, known: Sequence[str]) -> tuple[list[Path], ReportOptions]:
    """Return folders and options; an argument that is a folder is one, whatever its name.

    Raises:
        UsageError: an option not in `known`, or a value of another type.
    """
    from rlkit.report.build import ReportOptions  # not before: `--help` is read from here

    paths: list[Path] = []
    options = ReportOptions()
    types = {field.name: field.type for field in fields(ReportOptions)}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if Path(argument).is_dir():
            paths.append(Path(argument))
        elif not equals:
            raise UsageError(f"there is no folder {argument}")
        elif name not in known:
            raise UsageError(f"{name} is not an option; there are {', '.join(known)}")
        elif types[name] == "float":
            options.margin = _number(name, value)
        elif types[name] == "bool":
            options.figures = _truth(name, value)
        elif name == "baseline":
            options.baseline = value
        elif name == "panel":
            options.panel = value
        elif name == "metric":
            options.metric = value
        elif name == "at":
            options.at = _at(value)
        elif name == "out":
            options.out = value
    return paths, options


def _at(value: str) -> At:
    from rlkit.report.measure import At

    if value not in list(At):
        raise UsageError(f"at must be one of {', '.join(At)}, got {value}")
    return At(value)


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise UsageError(f"{name} must be a number, got {value}") from error


def _truth(name: str, value: str) -> bool:
    truth = yaml.safe_load(value)
    if not isinstance(truth, bool):
        raise UsageError(f"{name} must be true or false, got {value}")
    return truth
