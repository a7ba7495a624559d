"""What bounds a run's memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class MemoryConfig:
    """What bounds the memory of scoring and of the update."""

    tokens_per_microbatch: int = 8192
    """Padded tokens of one forward and backward pass, >= 0; no gradient depends on it. 0 = never
    split a batch: for losses that a split would change (`algorithm=bnpo`)."""
    torch_threads: int = 0
    """CPU threads of torch, >= 0; 0 = one or all, whichever is faster when the run starts."""

    def __post_init__(self) -> None:
        for key in ("tokens_per_microbatch", "torch_threads"):
            if getattr(self, key) < 0:
                raise ValueError(f"memory.{key} must be >= 0, got {getattr(self, key)}")
