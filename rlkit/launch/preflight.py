"""Every job of a command line is composed and checked before the first one starts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, NoReturn

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlkit.config import Config, ConfigError, Resume, did_you_mean, flatten, load, require
from rlkit.launch.composing import Composer, compose_job
from rlkit.launch.engines import check_engine, chosen_engine
from rlkit.launch.hydra_compat import expand_sweep, get_args_parser
from rlkit.launch.outside import as_typed, offer_algorithms
from rlkit.launch.place import check_place
from rlkit.launch.sweep_folder import Job
from rlkit.launch.words import composed_from
from rlkit.training.no_signal import STEPS_IN_A_SWEEP

# Flags that make Hydra print something instead of running jobs.
_PRINTING = ("help", "hydra_help", "cfg", "shell_completion", "info")


class LaunchPlan(NamedTuple):
    """A plan holds the checked jobs and options of a command line."""

    jobs: list[Job]
    """No two with the same configuration."""
    multirun: bool
    label: str = ""
    """The experiment's name, or the task's."""
    hydra: DictConfig | None = None
    """Hydra's own part of a sweep's configuration."""
    hydra_overrides: tuple[str, ...] = ()
    """The part of the command line that is about Hydra; of a single job its flags, too."""
    retry_failed: bool = False
    """`hydra.launcher.retry_failed` for launchers that do not have it."""


def preflight(arguments: Sequence[str]) -> list[Config]:
    """Return the configuration of every job that `arguments` mean; `plan` tells more of them."""
    return [job.config for job in plan(arguments).jobs]


def plan(arguments: Sequence[str]) -> LaunchPlan:
    """Compose and check every job that `arguments` stand for.

    Raises ConfigError with one line: the first broken rule, its key and value, and a sweep's job.
    """
    parser = get_args_parser()
    parser.error = _refuse_flags  # type: ignore[method-assign]
    parsed = parser.parse_args(list(arguments))
    if any(getattr(parsed, flag) for flag in _PRINTING):
        return LaunchPlan([], multirun=bool(parsed.multirun))
    setup_globals()
    check_engine(parsed.overrides)
    overrides = offer_algorithms(parsed.overrides)
    extra: list[str] = []
    if parsed.config_dir:
        extra.append(f"hydra.searchpath=[file://{Path(parsed.config_dir).resolve()}]")
    with initialize_config_module("rlkit.conf", version_base="1.3"):
        if not parsed.multirun:
            config = check_job(overrides + extra, compose_job)
            check_run_dir(config)
            rest = (a for a in arguments if _is_hydras(a) or a not in parsed.overrides)
            return LaunchPlan(
                [Job.of(config, overrides)], multirun=False, hydra_overrides=tuple(rest)
            )
        retry, overrides = _without_retry(overrides)
        hydra, expanded = _expand(overrides, extra)
        composer = Composer()
        checked = [in_sweep(check_job(job + extra, composer, job=job)) for job in expanded]
    own = [[as_typed(o) for o in job if not _is_hydras(o)] for job in expanded]
    jobs = {job.id: job for job in map(Job.of, checked, own)}
    label = hydra.runtime.choices.get("experiment") or checked[0].task.name
    return LaunchPlan(
        list(jobs.values()),
        multirun=True,
        label=label,
        hydra=hydra,
        hydra_overrides=(*filter(_is_hydras, overrides), *extra),
        retry_failed=retry,
    )


def _refuse_flags(message: str) -> NoReturn:
    """Raise ConfigError in place of argparse's usage text, which is Hydra's, and its exit."""
    raise ConfigError(f"{message} (rlkit --help lists what there is)")


def in_sweep(config: Config) -> Config:
    """Return `config` with a sweep's own default: a job that earns nothing ends by itself."""
    if config.stop.no_signal_steps is not None:
        return config
    return replace(config, stop=replace(config.stop, no_signal_steps=STEPS_IN_A_SWEEP))


def _is_hydras(override: str) -> bool:
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def _without_retry(overrides: Sequence[str]) -> tuple[bool, list[str]]:
    """Return `config` and `hydra.launcher.retry_failed`, taken out for launchers that lack it."""
    if chosen_engine(overrides) in ("", "isolated"):
        return False, list(overrides)
    option = "hydra.launcher.retry_failed=true"
    return option in overrides, [o for o in overrides if o != option]


def check_run_dir(config: Config) -> None:
    """Raise ConfigError when `run_dir` is in use and `resume` does not allow it, or the reverse.

    Or when nothing can be written there.
    """
    folder = Path(config.run_dir)
    check_place(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run_dir must be a folder, got the file {folder}")
    used = folder.is_dir() and any(folder.iterdir())
    if config.resume is Resume.never:
        rule = "a new or empty folder (resume=auto goes on with the run in it)"
        require(not used, "run_dir", rule, folder)
    if config.resume is Resume.must:
        saved = (folder / "checkpoints").is_dir()
        require(saved, "run_dir", "a run with checkpoints, as resume=must says", folder)


def check_job(
    overrides: Sequence[str],
    composer: Callable[[Sequence[str]], DictConfig],
    *,
    job: Sequence[str] | None = None,
) -> Config:
    """Return the checked configuration that `overrides` describe.

    Args:
        overrides: `key=value`, `group=option`, as after `rlkit`.
        composer: Composes them.
        job: The overrides of the sweep's job, for the message; None = no sweep.

    Raises:
        ConfigError: A rule is broken; the message is one line.
    """
    where = "" if job is None else f"sweep not started; job [{', '.join(job)}]: "
    try:
        return load(composed_from(overrides, composer))
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{where}{_one_line(error, overrides)}") from error


def _expand(overrides: Sequence[str], extra: Sequence[str]) -> tuple[DictConfig, list[list[str]]]:
    """Return Hydra's configuration and each job's overrides, an experiment's grid included."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    try:
        parsed = parser.parse_overrides(list(overrides))
        fixed = [o.input_line for o in parsed if not o.is_sweep_override() and o.input_line]
        whole = composed_from([*fixed, *extra], _with_hydra)
        params: DictConfig | None = OmegaConf.select(whole, "hydra.sweeper.params")
        grid = offer_algorithms([f"{key!s}={value}" for key, value in (params or {}).items()])
        every = parser.parse_overrides([*grid, *overrides])
        batches = expand_sweep(every)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"sweep not started: {_one_line(error, overrides)}") from error
    return whole.hydra, [list(job) for batch in batches for job in batch]


def _with_hydra(overrides: Sequence[str]) -> DictConfig:
    return compose("config", overrides=list(overrides), return_hydra_config=True)


def _one_line(error: Exception, overrides: Sequence[str]) -> str:
    """Return Hydra's message in one line, with the option that was probably meant."""
    if isinstance(error, OverrideParseException):
        return _how_to_quote(error.override)
    if str(error).startswith("Error merging override") and error.__cause__ is not None:
        key = re.search(r"full_key: (\S+)", str(error.__cause__))
        reason = str(error.__cause__).splitlines()[0]
        merged = re.search(r"Error merging override \+{0,2}[^=]*=(.*)", str(error))
        if key and merged and reason.endswith("to Dict[str, Any]"):
            return f"{key.group(1)} must be a mapping, got {merged.group(1).strip()}"
        return f"{key.group(1)}: {reason}" if key else reason
    text = " ".join(str(error).split())
    if match := re.search(r"Key '([^']+)' (?:is )?not in (?:struct|'[^']+')", text):
        full_key = re.search(r"full_key: (\S+)", text)
        wrong = full_key.group(1) if full_key else match.group(1)
        known = _known_keys(wrong, overrides)
        return f"{wrong} is not an option{did_you_mean(wrong, known)}"
    if match := re.search(r"Could not override '([^']+)'", text):
        wrong = match.group(1)
        for open_map in ("reward.functions", "task.columns", "evaluation.tasks"):
            if wrong.startswith(f"{open_map}."):
                return f"{wrong} is a new entry of {open_map}: write +{wrong}=..."
            if wrong == open_map:
                given = next(
                    (o for o in overrides if o.startswith(f"{wrong}=")), f"{wrong}={{...}}"
                )
                return f'{open_map} gets new entries: write "+{given}"'
        return f"{wrong} is not an option{did_you_mean(wrong, _known_keys(wrong, overrides))}"
    if match := re.search(
        r"Could not find '([^']+)/([^']+)' Available options in '[^']+': (.*)", text
    ):
        group, value, listed = match.groups()
        options = re.sub(r" (?:Config search path|Set the env|set_hydra).*", "", listed).split()
        hint = did_you_mean(value, options)
        return f"{group} must be one of {', '.join(options)}, got {value}{hint}"
    text = re.sub(r" (?:full_key: (\S+)|object_type=\S+|Set the env\S* .*)", r" (\1)", text)
    return text.replace(" ()", "")


def _how_to_quote(override: str) -> str:
    """Return one line on an override that Hydra's grammar does not take as it stands."""
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[+~]{0,2}[\w./@:-]+", key):
        return f"overrides must be KEY=VALUE, got {override}"
    inner = value.strip("'\"").replace("\\", "\\\\").replace("'", "\\'")
    quoted = f"{key}='{inner}'"
    odd = sorted({c for c in value if c in "=#<>{}[]()@;|&!*?" or not c.isascii()})
    holds = f" with {' '.join(odd)} in it" if odd else ""
    plain = not any(c in quoted for c in '$`"\\!')
    shell = f'"{quoted}"' if plain else shlex.quote(quoted)
    return f"{key} must be quoted{holds}, got {value}: write {shell}"


def _known_keys(wrong: str, overrides: Sequence[str]) -> list[str]:
    """Return every key of the configuration, composed without the overrides of the wrong one."""
    kept = [o for o in overrides if wrong.split(".")[-1] not in o.split("=")[0]]
    try:
        config = load(compose_job(kept))
    except (ConfigError, HydraException, OmegaConfBaseException):
        return []
    return sorted(flatten(config))
