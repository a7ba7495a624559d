"""Options that bound a run's memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from rlkit.models.config import QuantConfig, Switch
from rlkit.schema import Between, Options

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(text: str, *, name: str) -> int:
    """Return the bytes of `24GB`, `24 GiB`, `500MB` or a plain number, in the units as written.

    Raises ValueError `{name} must be RULE, got VALUE`.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match.group(2) not in _UNITS or float(match.group(1)) <= 0:
        raise ValueError(f"{name} must be a size such as 24GB or 20GiB, got {text}")
    return int(float(match.group(1)) * _UNITS[match.group(2)])


class WeightPlace(StrEnum):
    """The weights that the trainer computes with are on the ranks in one of these ways."""

    whole = "whole"
    """Every rank has all of them."""
    sharded = "sharded"
    """Each rank keeps a part of every decoder layer; a layer is gathered when it computes."""


@dataclass(kw_only=True, slots=True)
class MemoryConfig(Options):
    """Options that bound the memory of sampling, scoring and the update."""

    tokens_per_microbatch: int | None = None
    """Most tokens of one forward and backward pass, >= 0; no gradient depends on it. null = as many
    as are fastest of those that fit; the memory plan takes fewer than a number where these do not
    fit. 0 = never split a batch: for losses that a split would change (`algorithm=bnpo`)."""
    torch_threads: Annotated[int, Between(0, 1024)] = 0
    """CPU threads of torch, in [0, 1024]; 0 = one or all, whichever is faster when the run
    starts."""
    budget: str = ""
    """The run may take this of the device's memory in all, such as 24GB; empty = what is free."""
    dry_run: Switch = Switch.auto
    """Forward and backward of the longest prompt and completion before the first step, to fail
    early; auto = on CUDA."""
    weights: WeightPlace = WeightPlace.whole
    """Place of the frozen weights with several gpus. `sharded` is for models that fit no card: each
    pass costs the traffic of all layers."""
    quant: QuantConfig = field(default_factory=QuantConfig)

    def __post_init__(self) -> None:
        for key in ("tokens_per_microbatch", "torch_threads"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise ValueError(f"memory.{key} must be >= 0, got {value}")
        if self.budget:
            parse_bytes(self.budget, name="memory.budget")

    @property
    def is_sharded(self) -> bool:
        """Return whether each rank has a part of the layers alone."""
        return self.weights is WeightPlace.sharded

    @property
    def budget_bytes(self) -> int | None:
        """Return `budget` as a number; None = what is free."""
        return parse_bytes(self.budget, name="memory.budget") if self.budget else None
