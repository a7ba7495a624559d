"""This module finds environments by name, in the worker: the trainer imports no user code."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from rlkit.environments.base import Environment
from rlkit.runtime.redact import Redactor, resolved
from rlkit.schema import import_code

REGISTRY: Mapping[str, str] = {
    "calculator": "rlkit.environments.calculator:Calculator",
    "guess_number": "rlkit.environments.guess_number:GuessNumber",
    "lookup": "rlkit.environments.lookup:Lookup",
}
"""Environments of rlkit by name."""

_KEY = "environment.fn"


class LoadedEnvironment(NamedTuple):
    """This holds an environment and what it says about itself."""

    environment: Environment
    roles: tuple[str, ...]
    tools: tuple[Mapping[str, Any], ...]
    redactor: Redactor
    """Hides the secrets of the options and of the process in what the environment raises."""


def load(target: str, options: Mapping[str, Any]) -> LoadedEnvironment:
    """Return the environment that `target` makes with `options`.

    A target is a registered name, `package.module:Class` or `path/to/file.py:Class`; a function
    that returns an environment will do as well. Raises ValueError naming the configuration key.
    """
    module_name, _, name = REGISTRY.get(target, target).rpartition(":")
    if not (module_name and name):
        known = ", ".join(sorted(REGISTRY))
        raise ValueError(
            f"{_KEY} must be one of {known}, package.module:Class or file.py:Class, got {target}"
        )
    module = import_code(module_name, key=_KEY, target=target)
    factory = vars(module).get(name)
    if not callable(factory):
        raise ValueError(f"{_KEY} must name a class, got {target}: {module_name} has none")
    given = resolved(options, key="environment.options")  # late: files and logs keep `env:NAME`
    redactor = Redactor.collect(environ=os.environ, config=given)
    environment = _made(factory, given, target, redactor)
    for method, parameters in (("start", "example, seed"), ("step", "state, action")):
        if not _takes_two(getattr(environment, method, None)):
            raise ValueError(f"{_KEY} must have {method}({parameters}), got {target} without")
    roles = tuple(getattr(environment, "roles", ("user",)))
    if not roles or not set(roles) <= {"user", "tool"}:
        raise ValueError(f"{_KEY} must have roles of user and tool, got {roles} in {target}")
    tools = tuple(getattr(environment, "tools", ()))
    return LoadedEnvironment(cast(Environment, environment), roles, tools, redactor)


def _made(
    factory: Callable[..., Any], options: Mapping[str, Any], target: str, redactor: Redactor
) -> object:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        shown = redactor.config(options)
        raise ValueError(
            f"environment.options must be those of {target}, got {shown}: {error}"
        ) from error
    except ValueError:  # a class of C code has no signature to look at
        pass
    try:
        return factory(**options)
    except Exception as error:  # the user's code
        reason = " ".join(redactor.text(f"{type(error).__name__}: {error}").split())
        raise ValueError(f"{_KEY} must make an environment, got {target}: {reason}") from error


def _takes_two(method: object) -> bool:
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind(None, None)
    except TypeError:
        return False
    except ValueError:
        pass
    return True
