"""This module knows the ways to write a reward function, and calls each.

    def f(group): ...                              one prompt's completions, a value for each
    @per_sample
    def f(completion): ...                         one completion, one value
    def f(prompts, completions, **columns): ...    as TRL calls it, with one prompt's completions

Each may be `async def`. TRL's functions get lists: `completions` holds texts, or for a chat
`[{"role": "assistant", "content": text}]` each; columns of the data are repeated for each sample.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

_TRLS = ("prompts", "completions", "completion_ids")
_MARK = "completions"


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Return the parameters of a function; None for C functions that tell none."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def is_trls(function: Callable[..., Any]) -> bool:
    """Return whether one of the first two parameters is `completions`, as in TRL's signature."""
    parameters = parameters_of(function) or []
    return _MARK in [p.name for p in parameters[:2]]


def adapted(function: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return the function that takes a group (or a completion) in place of `function`.

    An `async def` runs to its end in an event loop of its own. It keeps the loop between calls, so
    that a client it has opened stays usable.
    """
    plain = _run_to_end(function) if inspect.iscoroutinefunction(function) else function
    return (
        functools.partial(_call_as_trl, plain, _accepted(function)) if is_trls(function) else plain
    )


def refusal(function: Callable[..., Any], *, per_sample: bool) -> str | None:
    """Say why a function cannot be called as a reward; None when it can."""
    parameters = parameters_of(function)
    if parameters is None or is_trls(function):
        return None
    what = "one completion" if per_sample else "the list of one prompt's completions"
    positional = [
        p
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if positional:
        return None
    shown = f"({', '.join(map(str, parameters))})"
    return f"take {what} first, or TRL's (prompts, completions, **columns), got {shown}"


def _run_to_end(function: Callable[..., Any]) -> Callable[..., Any]:
    runner = asyncio.Runner()

    @functools.wraps(function)
    def synchronous(*arguments: Any, **options: Any) -> Any:
        return runner.run(function(*arguments, **options))

    return synchronous


def _accepted(function: Callable[..., Any]) -> frozenset[str] | None:
    """Return the keywords that a function takes; None means any."""
    parameters = parameters_of(function) or []
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters)


def _call_as_trl(
    function: Callable[..., Any], accepted: frozenset[str] | None, group: Sequence[Any]
) -> Any:
    """Call `function` with keyword lists, as TRL's trainer does."""
    prompt = group[0].prompt
    is_chat = bool(prompt.messages)
    values: dict[str, list[Any]] = {
        **{name: [value] * len(group) for name, value in prompt.columns.items()},
        "prompts": [list(prompt.messages) if is_chat else prompt.text] * len(group),
        "completions": [
            [{"role": "assistant", "content": c.text}] if is_chat else c.text for c in group
        ],
        "completion_ids": [list(c.ids) for c in group],
    }
    return function(**{k: v for k, v in values.items() if accepted is None or k in accepted})
