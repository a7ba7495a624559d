"""Algorithms that live outside this repository: in a file of yours, or in an installed package.

    # my_algorithm.py
    @dataclass(kw_only=True)
    class MineConfig(PolicyGradientConfig):
        tau: float = 1.0

    def mine(objective: Objective[MineConfig], setting: Setting) -> Algorithm: ...

    rlkit algorithm.fn=my_algorithm.py:mine algorithm.tau=2
    rlkit -m algorithm=grpo,my_algorithm.py:mine seed=0,1

The annotation of `objective` says which dataclass holds the options; its fields are checked like
those of rlkit's own algorithms. A package offers a factory by name, `rlkit algorithm=mine`, with an
entry point of the group `rlkit.algorithms`: `mine = "my_package.my_module:mine"`.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import field, fields, is_dataclass, make_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from rlkit.algorithms.objective.base import AlgorithmConfig, Objective
from rlkit.schema import content_hash, import_code
from rlkit.types import Algorithm, Setting

ENTRY_POINTS = "rlkit.algorithms"
"""The group of entry points through which packages offer algorithms."""

_KEY = "algorithm.fn"
_FACTORY = "__rlkit_factory__"
_RULE = (
    f"{_KEY} must name a factory (objective: Objective[Config], setting: Setting) whose Config is "
    "a dataclass that extends AlgorithmConfig"
)


@typing.runtime_checkable
class Factory(typing.Protocol):
    """A factory makes an algorithm from its objective and the facts of a run; pure.

    It raises ValueError, `key must be RULE, got VALUE`, on combinations that cannot work.

    Example:

        def mine(objective: Objective[MineConfig], setting: Setting) -> Algorithm:
            policy = policy_gradient_loss(objective, setting)
            return Algorithm(prepare, policy.loss, policy.needs, policy.outputs)
    """

    # Any: each factory takes the objective with its own dataclass.
    def __call__(self, objective: Objective[Any], setting: Setting, /) -> Algorithm: ...


def load(target: str) -> type[AlgorithmConfig]:
    """Import `path/to/file.py:factory` or `package.module:factory` and return its options.

    The result extends the factory's own dataclass by `fn` and `sha256`, which tell what a run was
    made with; `factory_of` gives the factory back. Raises ValueError with one line when there is no
    such factory, or no dataclass in its annotation.
    """
    module_name, _, factory_name = target.rpartition(":")
    if not (module_name and factory_name):
        raise ValueError(f"{_KEY} must be package.module:factory or file.py:factory, got {target}")
    module = import_code(module_name, key=_KEY, target=target)
    factory = vars(module).get(factory_name)
    if not callable(factory):
        raise ValueError(f"{_RULE}, got {target}: {module_name} has no such function")
    options = options_of(factory, target=target)
    return _with_origin(options, factory, target, Path(module.__file__ or ""))


def installed() -> Iterator[tuple[str, str]]:
    """Yield (name, target) of every algorithm that an installed package offers, importing none."""
    for point in sorted(entry_points(group=ENTRY_POINTS)):
        yield point.name, point.value


def factory_of(config: type[AlgorithmConfig]) -> Factory | None:
    """Return the factory of a dataclass that `load` made, None for any other."""
    return getattr(config, _FACTORY, None)


def options_of(factory: Any, *, target: str) -> type[AlgorithmConfig]:
    """Return the dataclass in the annotation `objective: Objective[Config]` of a factory.

    Raises ValueError, naming `target`, when there is none.
    """
    try:
        hints = typing.get_type_hints(factory)
    except (NameError, TypeError) as error:
        raise ValueError(f"{_RULE}, got {target}: {error}") from error
    hint = hints.get("objective")
    (options, *_) = typing.get_args(hint) or (None,)
    if typing.get_origin(hint) is not Objective or not isinstance(options, type):
        raise ValueError(f"{_RULE}, got {target} with objective: {hint}")
    if not (is_dataclass(options) and issubclass(options, AlgorithmConfig)):
        raise ValueError(f"{_RULE}, got {target} with {options.__name__}")
    return options


def _with_origin(
    options: type[AlgorithmConfig], factory: Any, target: str, file: Path
) -> type[AlgorithmConfig]:
    """Return a subclass of `options` whose values say which factory and file they are for.

    So the fields are part of a run's identity: a resumed run or a sweep's job is refused when the
    file has changed under it.
    """
    own = {"fn": target, "sha256": content_hash(file)}
    if taken := own.keys() & {f.name for f in fields(options)}:
        raise ValueError(f"{options.__name__}.{min(taken)} must have another name: rlkit uses it")

    def check_origin(self: AlgorithmConfig) -> None:
        options.__post_init__(self)
        for name, value in own.items():
            got = getattr(self, name)
            if got != value:
                raise ValueError(f"algorithm.{name} must be {value}, as {file.name} is, got {got}")

    return make_dataclass(
        options.__name__,
        [(name, str, field(default=value)) for name, value in own.items()],
        bases=(options,),
        namespace={"__post_init__": check_origin, _FACTORY: staticmethod(factory)},
        kw_only=True,
    )
