"""How a package tells `rlkit.config` about its options."""

from __future__ import annotations

from typing import NamedTuple


class Schema(NamedTuple):
    """A config dataclass for Hydra's store, where YAML finds it as `/schema/{group}/{name}`."""

    group: str
    name: str
    node: type
