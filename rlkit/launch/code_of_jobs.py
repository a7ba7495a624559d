"""A job on another machine imports the algorithms from files before its engine reads its options.

Hydra's plugins pickle the options, and pickle finds the class of an option by its module. A file
that `algorithm.fn` names is no module that another machine could import by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from hydra.core.config_loader import ConfigLoader
from hydra.types import HydraContext

from rlkit.algorithms.outside import load
from rlkit.launch.hydra_compat import Callbacks


class CodeOfJobs:
    """This object imports the code of algorithms where it is unpickled."""

    def __init__(self, folder: str, targets: Iterable[str]) -> None:
        self.folder = folder
        """The folder that relative paths of the targets are below."""
        self.targets = tuple(targets)

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        with contextlib.chdir(self.folder):
            for target in self.targets:
                load(target)


class ContextWithCode(HydraContext):
    """The context of Hydra's plugins is pickled before all options, and its code first of all."""

    def __init__(self, code: CodeOfJobs, loader: ConfigLoader, callbacks: Callbacks) -> None:
        self.code = code  # before the rest: pickle keeps the order of attributes
        super().__init__(config_loader=loader, callbacks=callbacks)
