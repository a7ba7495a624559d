"""All sweeps of a user on this machine take shares of GPUs from one store of file locks.

    <tmp>/rlkit-<uid>/gpu/<name>/mutex     held while the leases of a card are counted
    <tmp>/rlkit-<uid>/gpu/<name>/*.lease   one lease: its share in millionths; valid while locked

A lock goes with the processes that hold it, however they end. So no lease outlives its job, and
none has to be cleaned up by hand.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rlkit.launch.devices import GPU

WHOLE = 1_000_000


def store() -> Path:
    """Return the folder of this user's leases on this machine.

    It is not in a home that machines share.
    """
    folder = Path(tempfile.gettempdir()) / f"rlkit-{os.getuid()}" / "gpu"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.parent.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder.parent} belongs to another user")
    return folder


class Lease:
    """A lease is a share of one card, held until `close`.

    Every process that got its descriptor holds it, too.
    """

    def __init__(self, gpu: GPU, path: Path, descriptor: int) -> None:
        self.gpu = gpu
        self.descriptor = descriptor
        self._path = path

    def close(self) -> None:
        """Give the share back; idempotent."""
        if self.descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def take(gpus: Sequence[GPU], *, jobs_per_gpu: int, folder: Path) -> Lease | None:
    """Return a share of 1 / `jobs_per_gpu` of the least used of `gpus`; None when none has it."""
    share = WHOLE // jobs_per_gpu
    cards = {gpu: folder / _safe(gpu.name) for gpu in gpus}
    for gpu in sorted(gpus, key=lambda gpu: used(cards[gpu])):
        with _mutex(cards[gpu]):
            if _count(cards[gpu]) + share <= WHOLE:
                return _new_lease(gpu, cards[gpu], share)
    return None


def take_cards(
    gpus: Sequence[GPU], *, count: int, jobs_per_gpu: int, folder: Path
) -> tuple[Lease, ...] | None:
    """Return shares of `count` different cards, or None when not so many have one free.

    What it took on the way is given back: a job never holds some cards while it waits for others.

    Args:
        gpus: The cards to choose from.
        count: Cards that the job needs, >= 1.
        jobs_per_gpu: The share of each is 1 / `jobs_per_gpu`.
        folder: The store of all leases.

    Returns:
        The leases, in the order in which the job numbers its cards; None = come again.
    """
    found: list[Lease] = []
    while len(found) < count:
        held = {lease.gpu for lease in found}
        left = [gpu for gpu in gpus if gpu not in held]
        lease = take(left, jobs_per_gpu=jobs_per_gpu, folder=folder)
        if lease is None:
            for taken in found:
                taken.close()
            return None
        found.append(lease)
    return tuple(sorted(found, key=lambda lease: gpus.index(lease.gpu)))


def used(card: Path) -> int:
    """Return millionths of the card with this folder that valid leases hold."""
    with _mutex(card):
        return _count(card)


def _new_lease(gpu: GPU, card: Path, share: int) -> Lease:
    path = card / f"{os.getpid()}-{secrets.token_hex(4)}.lease"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(descriptor, str(share).encode())
    return Lease(gpu, path, descriptor)


def _count(card: Path) -> int:
    # Only under the mutex: a lease that is being made is not locked yet, and would be removed.
    return sum(_share(path) for path in card.glob("*.lease"))


def _share(path: Path) -> int:
    """Return the share that a lease holds.

    It is 0, and the lease is removed, when no process holds its lock any more.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(descriptor, 16) or WHOLE)
    else:
        path.unlink(missing_ok=True)
        return 0
    finally:
        os.close(descriptor)


@contextmanager
def _mutex(card: Path) -> Iterator[None]:
    card.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (card / "mutex").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "gpu"
