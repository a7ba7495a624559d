"""This module checks what a judge is told: `reward.functions.NAME.options` with `fn: judge`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from rlkit.rewards.kinds import of_their_kinds

_ENV = "env:"


class JudgeMode(StrEnum):
    """This says what one question to the judge is about."""

    pairwise = "pairwise"
    """Two completions, asked in both orders. The reward is the share of wins, in [0, 1]."""
    pointwise = "pointwise"
    """One completion and a rubric of levels. The reward is the mean level, scaled to [0, 1]."""


class Opponents(StrEnum):
    """This says whom a completion is compared with, in pairwise mode."""

    group = "group"
    """Every other completion of its group: G (G - 1) questions for a group of G."""
    column = "column"
    """The text in `column` of the row, such as a reference answer: 2 G questions."""


class VerdictSource(StrEnum):
    """This says from where in a reply the verdict is read."""

    tokens = "tokens"
    """The probabilities of the first token (`logprobs`), so that a verdict is a soft one."""
    text = "text"
    """The last `[[A]]`, `[[B]]` or `[[C]]` (a tie) of a text, or `[[3]]` for a level."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeOptions:
    """A judge is told these; all but `url` and `model` have a default."""

    url: str = ""
    """Address of the endpoint up to its version: `http://127.0.0.1:8000/v1`."""
    model: str = ""
    """Name of the model there."""
    api_key: str = ""
    """`env:NAME`: the environment variable NAME holds the key when a request is sent."""
    mode: JudgeMode = JudgeMode.pairwise
    opponents: Opponents = Opponents.group
    column: str = "answer"
    """Column of the reference answer, for `opponents: column` and prompts that show it."""
    verdicts: VerdictSource = VerdictSource.tokens
    levels: int = 5
    """Best level of the rubric, in [2, 9]; the worst is 1. Pointwise only."""
    prompt: str = ""
    """YAML file with `system` and `user`; empty = the built-in question."""
    temperature: float = 0.0
    """The judge samples at this temperature, >= 0."""
    max_tokens: int = 512
    """Longest reply with `verdicts: text`; `tokens` asks for one token."""
    top_logprobs: int = 20
    """Words whose probability is asked for, in [2, 20]."""
    min_mass: float = 0.5
    """Least probability of all verdict tokens together, in [0, 1); a reply with less failed."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of each request; null takes a field out."""
    max_in_flight: int = 16
    """Most requests at once, >= 1."""
    timeout_s: float = 60.0
    """Seconds until one request is given up, > 0."""
    step_timeout_s: float = 300.0
    """Seconds that all questions of one batch may take, > 0; those left then failed."""
    retries: int = 4
    """Further tries of a request that may succeed later, >= 0."""
    max_calls: int = 0
    """Most requests of the run, >= 0; 0 = no limit. The run stops before the step that would pass
    it."""
    max_total_tokens: int = 0
    """Most tokens of the run, prompts and replies, >= 0; 0 = no limit."""
    cache: str = ""
    """SQLite file of the replies; empty = `judge.sqlite` in the run's folder."""
    cache_only: bool = False
    """Answer from the cache alone: what is not there failed, and nothing is sent."""

    def secret(self) -> str:
        """Return the key that the environment holds now; empty without `api_key`."""
        return os.environ.get(self.api_key.removeprefix(_ENV), "") if self.api_key else ""


def needs_column(options: JudgeOptions) -> bool:
    """Return whether the opponent of each completion stands in a column of its row."""
    return options.mode is JudgeMode.pairwise and options.opponents is Opponents.column


_RANGES: Mapping[str, tuple[float, float, str]] = {
    "levels": (2, 9, "in [2, 9]"),
    "temperature": (0, 1e6, ">= 0"),
    "max_tokens": (1, 1e9, ">= 1"),
    "top_logprobs": (2, 20, "in [2, 20]"),
    "min_mass": (0, 0.999999, "in [0, 1)"),
    "max_in_flight": (1, 1e9, ">= 1"),
    "timeout_s": (1e-9, 1e9, "> 0 and finite"),
    "step_timeout_s": (1e-9, 1e9, "> 0 and finite"),
    "retries": (0, 1e9, ">= 0"),
    "max_calls": (0, 1e18, ">= 0"),
    "max_total_tokens": (0, 1e18, ">= 0"),
}


def judge_options(name: str, given: Mapping[str, Any]) -> JudgeOptions:
    """Return the options of the judge called `name`; raises ValueError with one line."""
    key = f"reward.functions.{name}.options"
    known = [f.name for f in fields(JudgeOptions)]
    if unknown := [k for k in given if k not in known]:
        raise ValueError(f"{key} must be among {', '.join(known)}, got {unknown[0]}")
    if not isinstance(given.get("api_key", ""), str):  # it may be a key, so it is not shown
        raise ValueError(f"{key}.api_key must be env:NAME, a variable that holds it, got a number")
    values = of_their_kinds(key, JudgeOptions, given)
    for option, kind in (
        ("mode", JudgeMode),
        ("opponents", Opponents),
        ("verdicts", VerdictSource),
    ):
        if option in values:
            values[option] = _choice(f"{key}.{option}", kind, values[option])
    for option in given.keys() & _RANGES.keys():
        _check_number(f"{key}.{option}", values[option], *_RANGES[option])
    options = JudgeOptions(**values)
    _check(key, options)
    return options


def _choice(key: str, kind: type[StrEnum], value: object) -> StrEnum:
    try:
        return kind(str(value))
    except ValueError:
        raise ValueError(f"{key} must be {' or '.join(kind)}, got {value}") from None


def _check_number(key: str, value: float, low: float, high: float, rule: str) -> None:
    if not low <= value <= high:
        raise ValueError(f"{key} must be {rule}, got {value}")


def _check(key: str, options: JudgeOptions) -> None:
    if not options.url.startswith(("http://", "https://")):
        raise ValueError(
            f"{key}.url must be an address such as http://127.0.0.1:8000/v1, got {options.url!r}"
        )
    if not options.model:
        raise ValueError(f"{key}.model must name the endpoint's model, got nothing")
    _check_secret(key, options)
    if options.prompt and not Path(options.prompt).is_file():
        raise ValueError(f"{key}.prompt must be a file, got {options.prompt}")
    if not isinstance(options.extra, Mapping):
        raise ValueError(f"{key}.extra must be a mapping, got {options.extra}")


def _check_secret(key: str, options: JudgeOptions) -> None:
    """Refuse a key itself: it would stand in the run's folder. It is never shown either."""
    if not options.api_key:
        return
    variable = options.api_key.removeprefix(_ENV)
    if not options.api_key.startswith(_ENV) or not variable.isidentifier():
        raise ValueError(f"{key}.api_key must be env:NAME, a variable that holds it, got a text")
    if not options.secret() and not options.cache_only:
        raise ValueError(f"{key}.api_key must name a variable that is set, got env:{variable}")
