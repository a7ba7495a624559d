"""This module composes a job with Hydra, and many that differ in values only."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from hydra import compose
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from rlkit import config
from rlkit.launch.hydra_compat import apply_values, can_apply_values
from rlkit.launch.settings import IsolatedConfig


def register() -> None:
    """Put every schema of rlkit into Hydra's store, the sweep launcher's included; idempotent."""
    config.register()
    ConfigStore.instance().store(group="hydra/launcher", name="isolated", node=IsolatedConfig)


def compose_job(overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of one job, composed by Hydra: 0.2 s."""
    return compose("config", overrides=list(overrides))


class Composer:
    """A composer works like `compose_job`; jobs that choose the same options share one composition.

    Hydra applies values (`seed=3`) last, to what the choice of options (`kl=none`) has made. This
    does the same to copies. To be used while Hydra is initialised.
    """

    def __init__(self) -> None:
        self._repository = GlobalHydra.instance().config_loader().repository  # type: ignore[attr-defined]
        self._parser = OverridesParser.create()
        self._parsed: dict[str, Override] = {}
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        parsed = [self._parse(text) for text in overrides]
        # With a search path, options may live where the repository does not look.
        searches = any(o.get_key_element().lstrip("+~") == "hydra.searchpath" for o in parsed)
        if searches or not can_apply_values():
            return compose_job(overrides)
        choices = tuple(t for t, o in zip(overrides, parsed, strict=True) if self._chooses(o))
        if choices not in self._bases:
            self._bases[choices] = compose_job(choices)
        composed = copy.deepcopy(self._bases[choices])
        values = [o for o in parsed if not self._chooses(o)]
        apply_values(values, composed)
        return composed

    def _parse(self, text: str) -> Override:
        if text not in self._parsed:
            (self._parsed[text],) = self._parser.parse_overrides([text])
        return self._parsed[text]

    def _chooses(self, override: Override) -> bool:
        """Return whether it chooses an option of a group, or is Hydra's own."""
        return override.is_hydra_override() or self._repository.group_exists(override.key_or_group)
