"""Find the features that the installed vLLM can have, once when an engine starts."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlkit.generation.vllm.compat import v0_24, v0_29
from rlkit.generation.vllm.compat.features import Feature, gaps, line_of
from rlkit.generation.vllm.compat.line import VLLMLine
from rlkit.generation.vllm.sampling_options import require_vllm

_MEASURED = {"0.24.0": v0_24.LINE, "0.30.0": v0_29.LINE}
"""Versions on which the features were run and measured: their source need not be read again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """This says what a vLLM has of the private names that rlkit's features need."""

    line: VLLMLine | None
    """The line that it belongs to; None = one that bursts do not know."""
    missing: Mapping[Feature, tuple[str, ...]]
    """The names that are not there, by feature; a feature that is absent has all of its names."""
    is_measured: bool
    """Whether the features were run on this very version."""

    def why_not(self, feature: Feature) -> str:
        """Say what `feature` needs and this vLLM lacks; empty when it has everything."""
        lacking = self.missing.get(feature, ())
        more = f" and {len(lacking) - 1} more names" if len(lacking) > 1 else ""
        return f"{lacking[0]}{more} in vLLM" if lacking else ""


def look_up(version: str, *, root: Path | None = None) -> Support:
    """Look the private names up.

    Args:
        version: The installed vLLM's, as `package.version` gives it.
        root: The folder `vllm`; None = that of the installed package.

    Returns:
        For a measured version what is known of it, without reading its source.
    """
    number = version.split()[0].split("+")[0]
    if root is None and number in _MEASURED:
        return Support(line=_MEASURED[number], missing={}, is_measured=True)
    root = root or _installed()
    found = {feature: tuple(gaps(root, feature)) for feature in Feature}
    missing = {feature: names for feature, names in found.items() if names}
    return Support(line=line_of(root), missing=missing, is_measured=False)


def _installed() -> Path:
    require_vllm()
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent
