"""One supported line of vLLM: the calls that changed between the lines, in one shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class VLLMLine:
    """This says what bursts must do otherwise from one vLLM to the next."""

    name: str
    """The versions of the line, for people."""
    names: str
    """The names that only this line and later ones have, in the form that `source` reads."""
    waits: Callable[[Any], bool]
    """Tells whether any request waits in a scheduler."""
    gumbel_options: dict[str, Any]
    """Further arguments of `gumbel_sample`."""
    sample_options: Callable[[Any], dict[str, Any]]
    """Further arguments of `Sampler.sample`, for an `InputBatch`."""
    cuts: Callable[[Any, Any, int], Any]
    """Give `(states, batch, words)` to `SamplingStates.get_top_k_top_p`; top-k and top-p of each
    row come back, or None for what no row uses."""
