"""Several processes of one run speak over groups of their own, which vLLM never sees.

torch has one default group a process. vLLM takes it for its own and destroys it at its end. So a
run's ranks use none: their groups are made from a store directly. Small messages go over gloo on
the host, where the death of a rank is noticed at once. Sums of tensors on a GPU go over NCCL, right
after all ranks have said over gloo that they are there.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined]
    PrefixStore,
    ProcessGroupGloo,
    Store,
)

from rlkit.ranks.base import RankError
from rlkit.ranks.flat import by_owner, moved
from rlkit.ranks.mesh import mesh_of
from rlkit.ranks.pulse import Pulse
from rlkit.ranks.spans import Spans, costs

T = TypeVar("T")

_OK = 0
_HEAD = struct.Struct("<qq")
"""The status and the length of what a rank says."""
_SHORT = 4096
"""Bytes that go along with the head; only what is longer takes a second message."""
_LOOK_S = 1.0
_NCCL_S = 20.0
"""Ranks begin a sum on their cards together, so that more than this means a dead card."""
_START_S = 120.0


class Group:
    """The ranks of a run in several processes; see `rlkit.ranks.base.Ranks`."""

    def __init__(
        self,
        connect: Callable[[], Store],
        *,
        rank: int,
        size: int,
        device: torch.device,
        relayed: tuple[type[Exception], ...],
        in_step: bool = False,
    ) -> None:
        """Meet the other ranks at a store.

        Args:
            connect: It returns a new connection to the ranks' common store.
            rank: The number of this rank, in [0, `size`).
            size: The number of ranks, >= 2.
            device: The device of the tensors of `add`.
            relayed: Exceptions that all ranks raise when one does, made from their message. Of
                several the last of this list counts.
            in_step: Whether all ranks must make as many passes through the model.

        Raises:
            RankError: The other ranks did not come in time.
        """
        self.rank, self.size, self.in_step = rank, size, in_step
        store = connect()
        mesh = PrefixStore("mesh", connect())
        self.mesh = partial(mesh_of, mesh, rank=rank, size=size, device=device)
        self._relayed = relayed
        self._lost = False
        self._spans = Spans()
        # A connection of its own: one that waits for the other ranks would hold up the pulse.
        self._pulse = Pulse(PrefixStore("pulse", connect()), rank, size)
        self._store = PrefixStore("turns", connect())
        self._counters = itertools.count()
        try:
            self._host: Any | None = ProcessGroupGloo(
                PrefixStore("host", store), rank, size, timedelta(seconds=_START_S)
            )
        except RuntimeError as error:
            raise RankError(f"not all of {size} ranks came within {_START_S:g} s") from error
        self._host.set_timeout(timedelta(days=30))  # the pulse tells who is dead, not a limit
        self._cards: Any | None = None
        if device.type == "cuda":
            self._cards = _nccl(PrefixStore("cards", store), rank, size)

    def is_mine(self, index: int) -> bool:
        """Return whether item `index` falls to this rank: they take turns."""
        return index % self.size == self.rank

    def turns(self) -> Callable[[], int]:
        """Return a counter in the store; no rank waits for another there."""
        name = f"turn {next(self._counters)}"
        return lambda: int(self._store.add(name, 1)) - 1

    def together(self, work: Callable[[], T]) -> T:
        """Return what `work` returns here, once it has returned on all ranks."""
        results: list[T] = []

        def run() -> bytes:
            results.append(work())
            return b""

        self.share(run)
        return results[0]

    def share(self, work: Callable[[], bytes]) -> list[bytes]:
        """Return what `work` returned on each rank, in the order of ranks."""
        own: Exception | None = None
        try:
            status, payload = _OK, work()
        except Exception as error:
            # Whatever it is, the others must hear of it before it goes on.
            own = error
            status, payload = self._status_of(error), _one_line(error).encode()
        with self._spans.on_host():
            replies = self._exchange(status, payload)
        worst = max(code for code, _ in replies)
        if worst == _OK:
            return [part for _, part in replies]
        if own is not None and status == worst:
            raise own
        rank = [code for code, _ in replies].index(worst)
        text = replies[rank][1].decode(errors="replace")
        if worst <= len(self._relayed):
            raise self._relayed[worst - 1](text)
        raise RankError(f"rank {rank} failed: {text}")

    def _status_of(self, error: Exception) -> int:
        """Return 1 + the place of the error's type among those relayed; the last for others."""
        kinds = (n for n, kind in enumerate(self._relayed, 1) if isinstance(error, kind))
        return next(kinds, len(self._relayed) + 1)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put into each of `tensors` the sum over the ranks, in few messages for each dtype."""
        with self._all_there():
            moved(tensors, self._sum, self._span)

    def add_at(self, owners: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Put into each of `tensors` the sum over the ranks, on the rank that owns it."""
        with self._all_there():
            for owner, those in by_owner(tensors, owners).items():
                moved(those, partial(self._sum_at, owner), self._span)

    def copy_from(self, owners: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Put into each of `tensors` what it is on the rank that owns it, bit by bit."""
        with self._all_there():
            for owner, those in by_owner(tensors, owners).items():
                moved(those, partial(self._copy_from, owner), self._span)

    @contextmanager
    def _all_there(self) -> Iterator[None]:
        """Surround messages between cards by a word of all ranks over gloo."""
        if self._cards is not None:
            # A message waits for the ranks, and NCCL's time is then that of the sum alone.
            torch.cuda.current_stream().synchronize()
            self.share(bytes)
        yield
        if self._cards is not None:
            # A rank that died on the way here would keep the sums of the others waiting. Its
            # connection tells at once, NCCL's own clock only after half a minute.
            self.share(bytes)

    def add_numbers(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Return the sum over the ranks for each name, added in the order of ranks."""
        total: dict[str, float] = {}
        for part in self._numbers(numbers):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def largest(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Return the largest value over the ranks for each name."""
        most: dict[str, float] = {}
        for part in self._numbers(numbers):
            for name, value in part.items():
                most[name] = max(most.get(name, value), value)
        return most

    def _lose(self) -> None:
        """End the sums that wait on the card for a rank that is gone."""
        self._lost = True
        cards, self._cards = self._cards, None
        if cards is not None:
            cards.abort()

    def costs(self) -> dict[str, float]:
        """Return the seconds of messages and of waiting since the last call."""
        own = self._spans.take()
        found = costs([json.loads(part) for part in self.share(lambda: json.dumps(own).encode())])
        self._spans.take()  # the message about the messages
        return found

    def close(self) -> None:
        """Leave the groups; the others notice it when they next wait for this rank."""
        self._pulse.stop()
        if self._cards is not None:
            # Unlike a shutdown it waits for nobody; without it NCCL warns at the process's end.
            self._cards.abort()
        if self._lost:
            # The end of gloo's object waits for a rank that is frozen. So it never ends: the
            # process does, see `rlkit.launch.rank_process.leave`.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._host))
        self._host = None
        self._cards = None

    def _numbers(self, numbers: Mapping[str, float]) -> list[dict[str, float]]:
        return [json.loads(part) for part in self.share(lambda: json.dumps(dict(numbers)).encode())]

    def _span(self, tensor: Tensor) -> AbstractContextManager[None]:
        on_card = self._cards is not None and tensor.is_cuda
        return self._spans.on_card() if on_card else self._spans.on_host()

    def _sum(self, flat: Tensor) -> None:
        self._move(flat, lambda group, tensor: group.allreduce([tensor]))

    def _sum_at(self, owner: int, flat: Tensor) -> None:
        self._move(flat, lambda group, tensor: group.reduce(tensor, owner))

    def _copy_from(self, owner: int, flat: Tensor) -> None:
        # As bytes: gloo does not know all dtypes, and NaNs keep their bits.
        self._move(flat.view(torch.uint8), lambda group, tensor: group.broadcast(tensor, owner))

    def _move(self, flat: Tensor, send: Callable[[Any, Tensor], Any]) -> None:
        if self._cards is not None and flat.is_cuda:
            send(self._cards, flat).wait()
        else:
            host = flat.cpu()
            self._wait(send(self._gloo, host))
            flat.copy_(host)

    def _exchange(self, status: int, payload: bytes) -> list[tuple[int, bytes]]:
        """Return the status and the payload of every rank."""
        heads = self._all(_HEAD.pack(status, len(payload)) + payload[:_SHORT], _HEAD.size + _SHORT)
        known = [_HEAD.unpack_from(head) for head in heads]
        parts = [head[_HEAD.size :] for head in heads]
        longest = max(count for _, count in known)
        if longest > _SHORT:
            rest = self._all(payload[_SHORT:], longest - _SHORT)
            parts = [part + more for part, more in zip(parts, rest, strict=True)]
        return [(s, part[:count]) for (s, count), part in zip(known, parts, strict=True)]

    def _all(self, own: bytes, size: int) -> list[bytes]:
        """Return `own` of every rank, filled up to `size` bytes."""
        sent = torch.zeros(size, dtype=torch.uint8)
        if own:
            sent[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        found = [torch.empty_like(sent) for _ in range(self.size)]
        self._wait(self._gloo.allgather([found], [sent]))
        return [part.numpy().tobytes() for part in found]

    @property
    def _gloo(self) -> Any:
        if self._host is None:
            raise RankError(f"rank {self.rank} has left the run")
        return self._host

    def _wait(self, work: Any) -> None:
        """Wait for a message over gloo, in Python: signals are heard, and the dead are missed."""
        began = looked = now = time.monotonic()
        try:
            while not work.is_completed():
                # Sleeping late costs all ranks at the next message: at most 2% of what has passed.
                time.sleep(min(2e-5 + 0.02 * (now - began), 2e-3))
                now = time.monotonic()
                if now > looked + _LOOK_S:
                    looked = now
                    self._pulse.miss()
            work.wait()
        except RankError:
            self._lose()
            raise
        except RuntimeError as error:
            self._lose()
            name = f"rank {1 - self.rank}" if self.size == 2 else "another rank"
            raise RankError(f"{name} ended without a word") from error


def _nccl(store: Store, rank: int, size: int) -> Any:
    """Return a group of NCCL; builds of torch without CUDA have no such class."""
    from torch.distributed import ProcessGroupNCCL

    make: Any = ProcessGroupNCCL  # its stub knows one of its two constructors
    return make(store, rank, size, timedelta(seconds=_NCCL_S))


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
