"""This module finds reward functions by name, in the worker: the trainer imports no user code."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from rlkit.rewards.signature import adapted, is_trls, parameters_of, refusal
from rlkit.runtime.redact import Redactor, resolved
from rlkit.schema import import_code

REGISTRY: Mapping[str, str] = {
    "tag_answer": "rlkit.rewards.tags:tag_answer",
    "tag_format": "rlkit.rewards.tags:tag_format",
    "raw_exact": "rlkit.rewards.answers:raw_exact",
    "numeric_match": "rlkit.rewards.answers:numeric_match",
    "math": "rlkit.rewards.math:math_answer",
    "xmlcount": "rlkit.rewards.unsloth_2025:xmlcount",
    "soft_format": "rlkit.rewards.unsloth_2025:soft_format",
    "strict_format": "rlkit.rewards.unsloth_2025:strict_format",
    "int": "rlkit.rewards.unsloth_2025:integer_answer",
    "correctness": "rlkit.rewards.unsloth_2025:correctness",
    "cosine_length": "rlkit.rewards.length:cosine_length",
    "repetition": "rlkit.rewards.length:repetition",
    "overlong": "rlkit.rewards.length:overlong",
    "length_range": "rlkit.rewards.length:length_range",
    "choice": "rlkit.rewards.choice:choice",
    "regex": "rlkit.rewards.format:regex",
    "tags_in_order": "rlkit.rewards.format:tags_in_order",
    "json_schema": "rlkit.rewards.format:json_schema",
    "script": "rlkit.rewards.language:script",
    "language": "rlkit.rewards.language:language",
    "code": "rlkit.rewards.code:code",
    "reasoning_gym": "rlkit.rewards.reasoning:reasoning_gym",
    "of_part": "rlkit.rewards.parts:of_part",
    "countdown": "rlkit.rewards.countdown:countdown",
    "environment": "rlkit.rewards.episode:environment",
}
"""Built-in functions by name. `math`, `json_schema` and `language` need extras of their names."""

SCORERS = ("judge", "reward_model")
"""Names of `fn` that score a whole batch at once, outside the pool's processes."""

_PER_SAMPLE = "__rlkit_per_sample__"

_Function = TypeVar("_Function", bound=Callable[..., Any])


class LoadedReward(NamedTuple):
    """This holds a reward function with its options bound."""

    name: str
    """Its key in `reward.functions`."""
    function: Callable[[Any], Any]
    per_sample: bool
    """It takes one completion, not a group: a hang costs one sample, not the group."""
    redactor: Redactor
    """Knows the secrets among its options and in the environment."""


def per_sample(function: _Function) -> _Function:
    """Mark a reward function of one completion: `function(completion) -> float | None`.

    Without the mark, a reward function gets the list of one prompt's completions and returns one
    value for each.
    """
    setattr(function, _PER_SAMPLE, True)
    return function


def load(name: str, target: str, options: Mapping[str, Any]) -> LoadedReward:
    """Return the function that `target` names.

    A target is a registered name, `package.module:function` or `path/to/file.py:function`.

    `options` become its keyword arguments. Raises ValueError naming the configuration key.
    """
    key = f"reward.functions.{name}"
    module_name, _, function_name = REGISTRY.get(target, target).rpartition(":")
    module = import_code(module_name, key=f"{key}.fn", target=target)
    function = vars(module).get(function_name)
    if not callable(function):
        raise ValueError(f"{key}.fn must name a function, got {target}: {module_name} has none")
    one_by_one = bool(getattr(function, _PER_SAMPLE, False))
    if rule := refusal(function, per_sample=one_by_one):
        raise ValueError(f"{key}.fn must {rule}")
    _check_options(function, options, key=f"{key}.options")
    given = resolved(options, key=f"{key}.options")  # late: files and logs keep `env:NAME`
    bound = functools.partial(function, **given) if given else function
    redactor = Redactor.collect(environ=os.environ, config=given)
    return LoadedReward(name, adapted(bound), one_by_one, redactor)


def _check_options(function: Callable[..., Any], options: Mapping[str, Any], *, key: str) -> None:
    parameters = parameters_of(function)
    if parameters is None:
        return
    from_data = is_trls(function)  # its other parameters may be columns of the data
    parameters = parameters if from_data else parameters[1:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for option in options:
        if option not in known:
            choices = f"one of {', '.join(known)}" if known else "empty"
            raise ValueError(f"{key} must be {choices}, got {option}")
    for p in () if from_data else parameters:
        if p.name in known and p.default is p.empty and p.name not in options:
            raise ValueError(f"{key}.{p.name} must be given, got nothing")
