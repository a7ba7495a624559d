"""This module says what the rest of rlkit may ask of the ranks of a run, and answers for one rank.

No other file asks how many ranks there are: with one, every request costs nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")


class RankError(RuntimeError):
    """Another rank failed, vanished or disagrees; the message is one line that names it."""


@runtime_checkable
class Ranks(Protocol):
    """The ranks of a run, as one of them sees them.

    Every method but `is_mine` is collective: all ranks call the same methods in the same order.
    When a call fails on one rank, it raises on all of them.
    """

    @property
    def rank(self) -> int:
        """Return the number of this rank, 0 <= rank < size."""
        ...

    @property
    def size(self) -> int:
        """Return the number of ranks, >= 1."""
        ...

    @property
    def in_step(self) -> bool:
        """Return whether all ranks must make as many passes through the model, at the same time."""
        ...

    def is_mine(self, index: int) -> bool:
        """Return whether this rank computes the item `index` of a list that all ranks have."""
        ...

    def turns(self) -> Callable[[], int]:
        """Return a counter that all ranks share: each call, on any rank, gives the next number."""
        ...

    def together(self, work: Callable[[], T]) -> T:
        """Return what `work` returns here, once it has returned on all ranks."""
        ...

    def share(self, work: Callable[[], bytes]) -> list[bytes]:
        """Return what `work` returned on each rank, in the order of ranks."""
        ...

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put into each of `tensors` the sum over the ranks; all ranks get the same bits."""
        ...

    def add_at(self, owners: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Put into each of `tensors` the sum over the ranks, on the rank that owns it.

        What the tensor is on the other ranks afterwards is not said.
        """
        ...

    def copy_from(self, owners: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Put into each of `tensors` what it is on the rank that owns it, bit by bit."""
        ...

    def add_numbers(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Return the sum over the ranks for each name; a rank may lack a name."""
        ...

    def largest(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Return the largest value over the ranks for each name."""
        ...

    def mesh(self) -> DeviceMesh:
        """Return the ranks as torch's libraries want them, over its default group."""
        ...

    def costs(self) -> dict[str, float]:
        """Return metrics of what the ranks' messages took since the last call; none for one."""
        ...

    def close(self) -> None:
        """Let go of the other ranks; idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """A run of one process: it has nobody to wait for."""

    rank: int = 0
    size: int = 1
    in_step: bool = False

    def is_mine(self, index: int) -> bool:
        """Return True: there is nobody else."""
        return True

    def turns(self) -> Callable[[], int]:
        """Return a counter."""
        return itertools.count().__next__

    def together(self, work: Callable[[], T]) -> T:
        """Return what `work` returns."""
        return work()

    def share(self, work: Callable[[], bytes]) -> list[bytes]:
        """Return what `work` returns, as the only item."""
        return [work()]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Leave `tensors` as they are."""

    def add_at(self, owners: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Leave `tensors` as they are."""

    def copy_from(self, owners: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Leave `tensors` as they are."""

    def add_numbers(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Return `numbers`."""
        return dict(numbers)

    def largest(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Return `numbers`."""
        return dict(numbers)

    def mesh(self) -> DeviceMesh:
        """Raise RankError: there is nobody to share with."""
        raise RankError("a run of one process shares nothing")

    def costs(self) -> dict[str, float]:
        """Return nothing: there are no messages."""
        return {}

    def close(self) -> None:
        """Do nothing."""


ALONE = Alone()
