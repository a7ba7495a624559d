"""Jobs are sorted into panels and variants, which are named by what differs apart from the seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlkit.report.job import JobRecord
from rlkit.report.load import StudyError
from rlkit.schema import NAMES, NEWER_OPTIONS

# Leaves that say where and how a run was made, or stand for the seed; none makes a variant.
_NOT_A_VARIANT = (
    *("seed", "run_dir", "resume", "accept_changed_files"),
    *("tracker", "checkpoint", "stop"),
)
_LONG = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """An arm is one variant on one panel: its jobs differ in nothing but the seed."""

    where: tuple[str, ...]
    """The overrides that its panel shares, such as `task=echo`; empty when there is one panel."""
    variant: str
    style: int
    """Number of the variant over all panels: its colour, dash and marker."""
    jobs: tuple[JobRecord, ...]

    @property
    def panel(self) -> str:
        """Return the name of its panel."""
        return ", ".join(self.where)

    @property
    def done(self) -> dict[int, JobRecord]:
        """Return completed jobs by seed."""
        return {job.seed: job for job in self.jobs if job.done}


def is_setting(key: str) -> bool:
    """Return whether a leaf of the configuration can make a variant."""
    return key.split(".")[0] not in _NOT_A_VARIANT


def arms_of(jobs: Sequence[JobRecord], *, panel_keys: Sequence[str] | None = None) -> list[Arm]:
    """Group `jobs` into arms, in the order of their first jobs.

    Panels are made by `panel_keys`, overrides or leaves of the configuration. Without any (None),
    the task makes panels where it differs. Else the numerical options of a grid do, as long as
    others remain to make variants. Variants take their names from the overrides that are not common
    to all; jobs without overrides (plain run folders) from their configurations. Runs that agree in
    everything, the seed included, are kept apart by their ids.

    Raises:
        StudyError: a key of `panel_keys` that no job knows.
    """
    asked = all(job.overrides for job in jobs)
    choices = [_choices(job) if asked else _leaves(job) for job in jobs]
    varying = _varying(choices)
    panels = list(panel_keys or ())
    if panel_keys is None:
        panels = _tasks(varying) or (_numbers(choices, varying) if asked else [])
    known = {key for choice in choices for key in choice} | {k for j in jobs for k in j.config}
    for key in panel_keys or ():
        if key not in known:
            raise StudyError(f"panel must be an option of the jobs, got {key}; {_offer(varying)}")
    hidden = {key for key in varying if any(key == p or key.startswith(f"{p}.") for p in panels)}
    places = [_place(job, choice, panels) for job, choice in zip(jobs, choices, strict=True)]
    shown = [key for key in varying if key not in hidden]
    names = [_name({k: c[k] for k in shown if k in c}) for c in choices]
    names = _fall_back(names, jobs, places)
    groups: dict[tuple[tuple[str, ...], str], list[JobRecord]] = {}
    for job, place, name in zip(jobs, places, names, strict=True):
        groups.setdefault((place, name), []).append(job)
    styles = {name: i for i, name in enumerate(dict.fromkeys(names))}
    order = _order(places)
    arms = [
        Arm(where=place, variant=name, style=styles[name], jobs=tuple(found))
        for (place, name), found in groups.items()
    ]
    return sorted(arms, key=lambda arm: (order[arm.where], arm.style))


def panels_of(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    """Return arms by panel."""
    panels: dict[str, list[Arm]] = {}
    for arm in arms:
        panels.setdefault(arm.panel, []).append(arm)
    return panels


def pick_baseline(arms: Sequence[Arm], wanted: str | None) -> str:
    """Return the name of the variant the others are compared with: the `wanted` or the first one.

    `wanted` is the whole name, or overrides that one name alone has.

    Raises:
        StudyError: no variant, or more than one, is meant.
    """
    names = list(dict.fromkeys(arm.variant for arm in sorted(arms, key=lambda a: a.style)))
    if wanted is None or wanted in names:
        return wanted or names[0]
    parts = {part.strip() for part in wanted.split(",")}
    meant = [name for name in names if parts <= set(name.split(", "))]
    if len(meant) == 1:
        return meant[0]
    problem = f"means {len(meant)} variants" if meant else "is none of them"
    raise StudyError(f"baseline {wanted} {problem}; there are: {' | '.join(meant or names)}")


def _choices(job: JobRecord) -> dict[str, str]:
    pairs = (text.lstrip("+~").partition("=") for text in job.overrides)
    return {key: value for key, _, value in pairs if is_setting(key) and not _idle(key, job)}


def _leaves(job: JobRecord) -> dict[str, str]:
    leaves = ((key, str(value)) for key, value in job.config.items() if is_setting(key))
    return {key: value for key, value in leaves if not _idle(key, job)}


def _idle(key: str, job: JobRecord) -> bool:
    """Return whether a leaf does nothing in this job: it describes an adapter that is not there."""
    return key.startswith("model.lora.") and job.config.get("model.tuning") == "full"


def _varying(choices: Sequence[Mapping[str, str]]) -> list[str]:
    """Return keys whose values differ between jobs, or that some jobs lack."""
    known = [choice for choice in choices if choice]
    keys = dict.fromkeys(key for choice in known for key in choice)
    return [key for key in keys if disagree(key, known, text=str)]


def disagree(
    key: str, choices: Sequence[Mapping[str, str]], *, text: Callable[[object], str]
) -> bool:
    """Return whether the jobs say different things of an option.

    Args:
        key: The option's full name.
        choices: The options of each job, as text.
        text: Makes the text of a value.

    Returns:
        False where one job is of an older version that did what the others ask for.
    """
    if key in NAMES:
        return len({choice[key] for choice in choices if key in choice}) > 1
    before = text(NEWER_OPTIONS[key]) if key in NEWER_OPTIONS else None
    return len({choice.get(key, before) for choice in choices}) > 1


def _tasks(varying: Sequence[str]) -> list[str]:
    return [key for key in varying if key.split(".")[0] == "task"]


def _numbers(choices: Sequence[Mapping[str, str]], varying: Sequence[str]) -> list[str]:
    """Return the numerical options of a grid that has others as well."""
    numbers = [key for key in varying if all(_is_number(c.get(key, "")) for c in choices)]
    return numbers if len(numbers) < len(varying) else []


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _place(job: JobRecord, choice: Mapping[str, str], keys: Sequence[str]) -> tuple[str, ...]:
    # Where nobody chose an option of a group, the group's name stands for it: task, task.name.
    found = {
        key: choice.get(key, job.config.get(key, job.config.get(f"{key}.name"))) for key in keys
    }
    return tuple(f"{key}={value}" for key, value in found.items() if value is not None)


def _order(places: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    """Return ranks of panels: by their numbers, and what is no number in the order of the jobs."""
    seen = {part: i for i, part in enumerate(dict.fromkeys(p for place in places for p in place))}

    def rank(part: str) -> tuple[bool, float]:
        value = part.partition("=")[2]
        return (False, float(value)) if _is_number(value) else (True, seen[part])

    ranked = sorted(dict.fromkeys(places), key=lambda place: [rank(part) for part in place])
    return {place: i for i, place in enumerate(ranked)}


def _name(choice: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" if value else key for key, value in choice.items())


def _fall_back(
    names: Sequence[str], jobs: Sequence[JobRecord], places: Sequence[tuple[str, ...]]
) -> list[str]:
    """Return ids where overrides cannot tell jobs apart, or configurations differ too much."""
    ids = [job.id for job in jobs]
    if not any(job.overrides for job in jobs) and any(len(name) > _LONG for name in names):
        grouped: dict[str, str] = {}
        for name, job_id in zip(names, ids, strict=True):
            grouped.setdefault(name, job_id)
        names = [grouped[name] for name in names]
    found = []
    seen: set[tuple[tuple[str, ...], str, int]] = set()
    for name, job, place in zip(names, jobs, places, strict=True):
        label = name or "all runs"
        if (place, label, job.seed) in seen:
            label = f"{label} ({job.id})"
        seen.add((place, label, job.seed))
        found.append(label)
    return found


def _offer(varying: Sequence[str]) -> str:
    return f"those that differ are {', '.join(varying)}" if varying else "none differs"
