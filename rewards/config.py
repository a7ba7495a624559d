"""This module configures the rewards: functions, weights, and when a call is given up."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

from rlkit.rewards.load import REGISTRY, SCORERS
from rlkit.schema import BYTES, Between, Options, Schema, require

_SECONDS = Between(0.0, 1e6)


class OnFailure(StrEnum):
    """This decides over a sample of which a reward function failed."""

    drop = "drop"
    """Its reward is NaN: the sample teaches nothing. The sum of the rest would count the failed
    function as 0."""
    ignore = "ignore"
    """Its reward is the weighted sum of the other functions."""


class SpecialTokens(StrEnum):
    """This decides whether rewards see the tokenizer's special tokens."""

    drop = "drop"
    """They are left out, as `skip_special_tokens` does."""
    keep = "keep"
    """They stay, except those that begin, end or pad a sequence. For tokenizers in which
    `<answer>` or `<think>` is a special token."""


class RewardSpec(NamedTuple):
    """This describes one reward function of a run."""

    name: str
    """Names its metrics: `rewards/{name}/mean`."""
    fn: str
    """A registered name, `package.module:function` or `path/to/file.py:function`."""
    weight: float = 1.0
    """Factor in the sum; 0 = only logged."""
    options: Mapping[str, Any] = MappingProxyType({})
    """Keyword arguments of the function."""


@dataclass(kw_only=True, slots=True)
class RewardFunctionConfig(Options):
    """This configures one reward function; its key in `reward.functions` names its metrics."""

    fn: str = ""
    """A registered name (`tag_answer`), `package.module:function`, or `path/to/file.py:function`.
    Empty = the registered name that equals the key."""
    weight: Annotated[float, Between(-1e6, 1e6)] = 1.0
    """Factor in the sum of rewards, in [-1e6, 1e6]. 0 = computed and logged only."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function; unknown ones are errors."""


@dataclass(kw_only=True, slots=True)
class RewardConfig(Options):
    """The reward of a completion is a weighted sum of functions, run in killable processes."""

    # Any, because omegaconf refuses `+reward.functions.mine.fn=...` on a dict of dataclasses; the
    # values are made `RewardFunctionConfig` below.
    functions: dict[str, Any] = field(default_factory=dict)
    """`RewardFunctionConfig` by name, in the order of their metrics. Empty = what the task
    recommends."""
    on_failure: OnFailure = OnFailure.drop
    """drop or ignore, for a sample of which a function with a weight raised, hung or crashed."""
    special_tokens: SpecialTokens = SpecialTokens.drop
    """drop or keep: whether tags that are special tokens are part of a completion's text."""
    timeout_s: Annotated[float, _SECONDS] = 10.0
    """Seconds until a call is killed, > 0 and <= 1e6. A call is one sample for functions marked
    `per_sample` (all built-in ones are), else one prompt's group."""
    step_timeout_s: Annotated[float, _SECONDS] = 300.0
    """Seconds that scoring one batch may take in all, > 0 and <= 1e6. The rest of the batch then
    counts as timed out. So a policy that hangs a function on every sample cannot stop the run.
    """
    startup_timeout_s: Annotated[float, _SECONDS] = 120.0
    """Seconds that importing the functions' modules may take, > 0 and <= 1e6."""
    workers: Annotated[int, Between(1, 256)] = 2
    """Worker processes, in [1, 256]; about 15 MB each, and what the functions import."""
    max_output_bytes: Annotated[int, BYTES] = 1 << 20
    """Most bytes that one call may print, >= 0; beyond that it is killed."""
    max_failure_rate: Annotated[float, Between(0.0, 1.0)] = 1.0
    """Largest share of a batch's samples, in [0, 1], that a function with a weight may fail on. The
    run stops beyond it and shows one of them. 1 = it never stops."""
    max_memory_bytes: Annotated[int, BYTES] = 0
    """Most bytes that a worker, and each process that a function starts, may allocate, >= 0; beyond
    that the call fails and is counted. 0 = half of the machine's memory divided by the workers, at
    least 2 GiB."""

    @property
    def memory_of_a_worker(self) -> int:
        """Return `max_memory_bytes`, chosen where it is 0."""
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return self.max_memory_bytes or max(2 << 30, machine // (2 * self.workers))

    def __post_init__(self) -> None:
        for key in ("timeout_s", "step_timeout_s", "startup_timeout_s"):
            value = getattr(self, key)
            if not 0 < value < float("inf"):
                raise ValueError(f"reward.{key} must be > 0 and finite, got {value}")
        if self.workers < 1:
            raise ValueError(f"reward.workers must be >= 1, got {self.workers}")
        least = self.max_memory_bytes == 0 or self.max_memory_bytes >= 1 << 27
        require(least, "reward.max_memory_bytes", ">= 134217728, or 0", self.max_memory_bytes)
        if self.max_output_bytes < 0:
            raise ValueError(f"reward.max_output_bytes must be >= 0, got {self.max_output_bytes}")
        rate = self.max_failure_rate
        require(0 <= rate <= 1, "reward.max_failure_rate", "in [0, 1]", rate)
        functions = {name: _function(name, value) for name, value in self.functions.items()}
        # The field is set and read only by now; this replaces what YAML said by what it means.
        object.__setattr__(self, "functions", functions)


def reward_specs(config: RewardConfig, recommended: Sequence[RewardSpec]) -> tuple[RewardSpec, ...]:
    """Return the functions of `config`, or the `recommended` ones where it names none.

    Raises ValueError when there is neither, or when no function has a weight.
    """
    specs = tuple(
        RewardSpec(name, function.fn or name, float(function.weight), function.options)
        for name, function in config.functions.items()
    ) or tuple(recommended)
    if not specs:
        raise ValueError(
            "reward.functions must name a function, got none: this task recommends no reward; "
            "choose one of the group `reward`"
        )
    if all(spec.weight == 0 for spec in specs):
        raise ValueError("reward.functions must hold a weight other than 0, got only 0")
    return specs


def _function(name: str, value: object) -> RewardFunctionConfig:
    key = f"reward.functions.{name}"
    if "/" in name or not name:
        raise ValueError(f"{key} must be a name without '/', got {name!r}")
    if not isinstance(value, RewardFunctionConfig):
        known = [f.name for f in fields(RewardFunctionConfig)]
        if not isinstance(value, dict):
            raise ValueError(f"{key} must hold {', '.join(known)}, got {value}")
        if unknown := [k for k in value if k not in known]:
            raise ValueError(
                f"{key} must hold {', '.join(known)} and nothing else, got {unknown[0]}"
            )
        value = RewardFunctionConfig(**value)
    _check_function(key, name, value)
    return value


def _check_function(key: str, name: str, function: RewardFunctionConfig) -> None:
    require(isinstance(function.fn, str), f"{key}.fn", "text", function.fn)
    is_number = isinstance(function.weight, int | float) and not isinstance(function.weight, bool)
    require(is_number, f"{key}.weight", "a number", function.weight)
    require(isinstance(function.options, dict), f"{key}.options", "a mapping", function.options)
    if not abs(function.weight) < float("inf"):
        raise ValueError(f"{key}.weight must be finite, got {function.weight}")
    target = function.fn or name
    module, _, attribute = target.rpartition(":")
    known = (*REGISTRY, *SCORERS)
    if target not in known and not (module and attribute):
        near = difflib.get_close_matches(target, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"{key}.fn must be a registered name, package.module:function or file.py:function, "
            f"got {target}{hint}"
        )


SCHEMAS: tuple[Schema, ...] = (Schema("reward", "base", RewardConfig),)
