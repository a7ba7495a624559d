"""This module asks the device what it has and what a run takes of it."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import psutil
import torch

from rlkit.plan.parts import CONTEXT_BYTES
from rlkit.runtime.torch_compat import let_cuda_segments_grow


def available_bytes(device: torch.device) -> int:
    """Return what this process can still take; its CUDA context exists already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + CONTEXT_BYTES
    return int(psutil.virtual_memory().available)


def let_segments_grow(device: torch.device) -> None:
    """Let CUDA's allocator map memory as it needs it from now on, not in fixed segments.

    Sequences of different lengths leave holes in fixed segments that no plan could foresee. To be
    called once an engine has made the pools of its own, which cannot have this.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        if not let_cuda_segments_grow():
            line = "CUDA memory stays in fixed segments, this torch has no setting for it"
            print(f"rlkit: {line}: a run may take more than planned", file=sys.stderr)


@dataclass(slots=True)
class Meter:
    """This object measures from where the run began: memory that others hold is not the run's."""

    device: torch.device
    before: int
    """Bytes in use on the device (CPU: of this process) before the run took any."""
    highest: int = 0
    """`note` saw this at most."""
    sampled_tokens: int = 0
    """Most completion tokens of one training step so far; whoever samples counts them."""

    @classmethod
    def start(cls, device: torch.device) -> Meter:
        """Begin here."""
        if device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
            return cls(device, max(0, _used(device) - CONTEXT_BYTES))
        return cls(device, psutil.Process().memory_info().rss)

    def peak(self) -> int:
        """Return the most bytes of the run at once so far.

        On CUDA this is the allocator's peak of reserved memory and whatever is in use outside of it
        now, the context included. What an engine gives back between two looks is seen only by a
        `note` while it is there. On a CPU it is the process's largest resident size.
        """
        self.note()
        return self.highest

    def of_process(self) -> int:
        """Return the most bytes that torch's allocator reserved here, and its CUDA context."""
        return torch.cuda.max_memory_reserved(self.device) + CONTEXT_BYTES

    def note(self) -> None:
        """Look now: before an engine gives its key-value cache back."""
        self.highest = max(self.highest, self._seen())

    def in_use(self) -> int:
        """Return bytes in use on the device now, those before the run included.

        On a CPU these are the bytes of this process.
        """
        if self.device.type == "cuda":
            return _used(self.device)
        return int(psutil.Process().memory_info().rss)

    def restart(self) -> None:
        """Begin a new peak at what is in use now; a CPU's peak cannot be forgotten."""
        self.highest = 0
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def _seen(self) -> int:
        if self.device.type != "cuda":
            unit = 1 if sys.platform == "darwin" else 1024
            largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
            return max(0, largest - self.before)
        # The allocator counts an engine's sleeping cache as reserved, the device does not: in the
        # difference it cancels out.
        outside = _used(self.device) - torch.cuda.memory_reserved(self.device)
        return outside + torch.cuda.max_memory_reserved(self.device) - self.before


def _used(device: torch.device) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return total - free
