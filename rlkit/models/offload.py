"""Keep the tensors that a backward pass will need in host memory, with copies beside compute.

    compute  | layer 1    | layer 2    | ...        | layer 2 back  | layer 1 back |
    to host     input 1    | input 2    |
    to device                                 | input 2 | input 1    |

Copies run on a stream of their own for each direction and wait for events on the device, never in
the host. A fetch of a tensor also starts that of the one kept before it. The newest tensor, which a
backward pass wants first, stays. The page-locked memory is kept from step to step. Values come back
bitwise.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 512
_MIN_SLAB = 2**24
_TENSORS_PER_SLAB = 8


class HostStack:
    """Host memory in slabs, page-locked for CUDA: taken in order, free again once all of it is.

    torch's page-locked memory comes in powers of two. A slab is at least eight times its first
    tensor, so at most an eighth of it is lost.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._slabs: list[Tensor] = []
        self._slab = self._offset = self._live = 0

    @property
    def num_bytes(self) -> int:
        """Return the size of all slabs."""
        return sum(slab.numel() for slab in self._slabs)

    @property
    def num_live(self) -> int:
        """Count the buffers taken and not released."""
        return self._live

    def take(self, num_bytes: int) -> Tensor:
        """Return `num_bytes` bytes (uint8) that nobody else has before `release`."""
        size = -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        while self._slab < len(self._slabs) and not self._fits(size):
            self._slab, self._offset = self._slab + 1, 0
        if self._slab == len(self._slabs):
            wanted = max(_MIN_SLAB, _TENSORS_PER_SLAB * size)
            rounded = 1 << (wanted - 1).bit_length()
            self._slabs.append(torch.empty(rounded, dtype=torch.uint8, pin_memory=self._pinned))
        start, self._offset = self._offset, self._offset + size
        self._live += 1
        return self._slabs[self._slab][start : start + num_bytes]

    def release(self) -> bool:
        """Give one buffer back; True when it was the last one out."""
        self._live -= 1
        if self._live == 0:
            self._slab = self._offset = 0
        return self._live == 0

    def _fits(self, size: int) -> bool:
        return self._offset + size <= self._slabs[self._slab].numel()


@dataclass(eq=False, slots=True, weakref_slot=True)
class Kept:
    """One tensor that `Offload` keeps, wherever it is at the moment, for as long as this lives."""

    on_device: Tensor | None
    """The tensor, or the copy that is on its way back."""
    ready: Any
    """Event of the last thing that happened to it: made, copied to the host, copied back."""
    before: weakref.ReferenceType[Kept] | None
    """The tensor that was kept before this: the backward pass wants it next."""
    on_host: Tensor | None = None


class Offload:
    """This object moves tensors of one device to the host and back, on one thread.

    Small models are bound by the host: a tensor on its way takes few calls, and one event.
    """

    def __init__(self, device: torch.device, *, min_bytes: int = 2**20) -> None:
        """Make an empty store; smaller tensors than `min_bytes` stay where they are."""
        self.host = HostStack(pinned=device.type == "cuda")
        self._device = device
        self._min_bytes = min_bytes
        # The CPU has streams and events as well, which do nothing: the same code runs there.
        self._backend: Any = torch.get_device_module(device)
        self._to_host: Any = self._backend.Stream()
        self._to_device: Any = self._backend.Stream()
        self._enqueued: Any = self._backend.Event()
        self._newest: weakref.ReferenceType[Kept] | None = None
        # Device memory that a copy still reads or writes, with the event of its end. Memory goes
        # back to the compute stream's pool when its last reference goes: not before that event.
        self._in_flight: list[tuple[Tensor, Any]] = []
        # Who has host memory, told when it goes: `weakref.finalize` takes four times as long.
        self._lent: set[weakref.ReferenceType[Kept]] = set()

    def keep(self, tensor: Tensor) -> Kept:
        """Take `tensor`, whose values must not change any more; what was kept before goes now."""
        moves = tensor.nbytes >= self._min_bytes and tensor.is_contiguous()
        # Detached: a tensor in flight must not keep alive the graph that it came from.
        kept = Kept(tensor.detach(), None, self._newest)
        if moves:
            compute = self._backend.current_stream()
            previous = None if self._newest is None else self._newest()
            if previous is not None and previous.on_host is None:
                self._send(previous, compute)
            kept.ready = self._backend.Event()
            kept.ready.record(compute)
            self._newest = weakref.ref(kept)
        return kept

    def fetch(self, kept: Kept) -> Tensor:
        """Return the tensor that was kept, on its device; may be asked for again.

        The one kept before it is on its way from now on.
        """
        if kept.ready is None:
            assert kept.on_device is not None
            return kept.on_device
        compute = self._backend.current_stream()
        if kept.on_device is None:
            self._bring(kept, compute)
        tensor = kept.on_device
        assert tensor is not None
        if kept.on_host is not None:
            compute.wait_event(kept.ready)
            self._in_flight = [x for x in self._in_flight if x[1] is not kept.ready]
            kept.on_device = None  # the caller has it; asked again, it is copied again
        before = None if kept.before is None else kept.before()
        if before is not None and before.on_device is None:
            self._bring(before, compute)
        return tensor

    def _send(self, kept: Kept, compute: Any) -> None:
        """Start the copy to the host; the device's memory is given up once it is done."""
        tensor = kept.on_device
        assert tensor is not None
        self._wait_for_copies(compute)
        buffer = self.host.take(tensor.nbytes)
        self._lent.add(weakref.ref(kept, self._release))
        kept.on_host = buffer.view(tensor.dtype).view(tensor.shape)
        self._to_host.wait_event(kept.ready)
        with self._on(self._to_host):
            kept.on_host.copy_(tensor, non_blocking=True)
        kept.ready.record(self._to_host)
        self._in_flight.append((tensor, kept.ready))
        kept.on_device = None

    def _bring(self, kept: Kept, compute: Any) -> None:
        """Start the copy to the device."""
        assert kept.on_host is not None
        self._wait_for_copies(compute)
        # Allocated for the compute stream, whose earlier work may still use the same memory.
        kept.on_device = torch.empty_like(kept.on_host, device=self._device)
        self._enqueued.record(compute)
        self._to_device.wait_event(self._enqueued)
        with self._on(self._to_device):
            kept.on_device.copy_(kept.on_host, non_blocking=True)
        kept.ready.record(self._to_device)
        self._in_flight.append((kept.on_device, kept.ready))

    def _wait_for_copies(self, compute: Any) -> None:
        """Hold back the compute stream, not the host, so that their device memory can be reused."""
        for _, done in self._in_flight:
            compute.wait_event(done)
        self._in_flight.clear()

    def _on(self, stream: Any) -> Any:
        """Make `stream` the current one; CUDA's are contexts themselves, the CPU's are not."""
        return stream if isinstance(stream, torch.Stream) else self._backend.stream(stream)

    def _release(self, lent: weakref.ReferenceType[Kept]) -> None:
        self._lent.discard(lent)
        if self.host.release():
            # What comes back in vain, after an error, must not meet the next step's copies.
            self._to_host.wait_stream(self._to_device)
