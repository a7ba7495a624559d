"""This module sets resolved configurations side by side: what differs, and what arms share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlkit.report.arms import Arm, disagree, is_setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """This record is one option of one arm."""

    text: str
    differs: bool
    """From the baseline of the same panel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """This record has a table of the options that differ, and the list of those that do not."""

    keys: tuple[str, ...]
    rows: tuple[tuple[Arm, tuple[Cell, ...]], ...]
    shared: Mapping[str, str]


def differences(arms: Sequence[Arm], *, baseline: str) -> Differences:
    """Compare the configurations of the arms' first configured jobs."""
    configs = {id(arm): _config(arm) for arm in arms}
    known = [arm for arm in arms if configs[id(arm)]]
    keys = dict.fromkeys(key for arm in known for key in configs[id(arm)])
    found = [configs[id(arm)] for arm in known]
    differing = [key for key in keys if disagree(key, found, text=_text)]
    bases = {arm.panel: configs[id(arm)] for arm in known if arm.variant == baseline}
    rows = tuple(
        (
            arm,
            tuple(_cell(configs[id(arm)], bases.get(arm.panel, {}), key) for key in differing),
        )
        for arm in known
    )
    shared = {key: _shared(key, found) for key in keys if key not in differing}
    return Differences(keys=tuple(differing), rows=rows, shared=shared)


def _shared(key: str, configs: Sequence[Mapping[str, str]]) -> str:
    # A run of an older version does not say what it has in common with the others.
    return next(config[key] for config in configs if key in config)


def _cell(config: Mapping[str, str], base: Mapping[str, str], key: str) -> Cell:
    differs = bool(base) and config.get(key) != base.get(key)
    return Cell(text=config.get(key, "–"), differs=differs)


def _config(arm: Arm) -> dict[str, str]:
    for job in arm.jobs:
        if job.config:
            return {key: _text(value) for key, value in job.config.items() if is_setting(key)}
    return {}


def _text(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
