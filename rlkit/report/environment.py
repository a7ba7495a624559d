"""This module says on what and by what the runs were made, as far as their folders tell."""

from __future__ import annotations

import json
from collections.abc import Mapping

from rlkit.report.job import JobRecord
from rlkit.report.load import Study

_ABOUT = ("model", "task", "algorithm", "device", "dtype", "command")
_MARK = " rlkit.run: versions "


def environment(study: Study) -> dict[str, list[str]]:
    """Return for each name the different values that the jobs have, in the order they occur."""
    found: dict[str, dict[str, None]] = {}
    if study.command:
        found["command"] = dict.fromkeys([*study.earlier_commands, study.command])
    for job in study.jobs:
        facts = _facts(job)
        for name, value in facts.items():
            if name == "command" and study.command:
                continue
            found.setdefault(name, {})[value] = None
    return {name: list(values) for name, values in found.items()}


def _facts(job: JobRecord) -> dict[str, str]:
    if not job.info:
        return _logged_versions(job)
    facts = {name: str(job.info[name]) for name in _ABOUT if job.info.get(name)}
    for group in ("hardware", "versions"):
        values = job.info.get(group)
        if isinstance(values, Mapping):
            facts |= {str(name): str(value) for name, value in values.items()}
    return facts


def _logged_versions(job: JobRecord) -> dict[str, str]:
    """Return the facts that a log has, for runs that are older than `run.json`."""
    path = job.folder / "log.txt"
    if not path.exists():
        return {}
    with path.open(errors="replace") as log:
        for line in log:
            if _MARK in line:
                try:
                    versions = json.loads(line.partition(_MARK)[2])
                except ValueError:
                    return {}
                return {str(k): str(v) for k, v in versions.items()}
    return {}
