"""Items of different sizes are dealt out to ranks, so that no rank has much more than another."""

from __future__ import annotations

from collections.abc import Sequence


def deal(sizes: Sequence[int], count: int) -> list[int]:
    """Return the rank of each item: the largest go first, each to the rank that has least so far.

    The largest rank gets at most a third more than in the best split (Graham 1969).
    """
    load, owners = [0] * count, [0] * len(sizes)
    for number in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        rank = load.index(min(load))
        load[rank] += sizes[number]
        owners[number] = rank
    return owners


def deal_evenly(sizes: Sequence[int], count: int) -> list[int]:
    """Return the rank of each item so that no rank gets more than one item more than another.

    In each round of one item a rank, the largest goes to the rank that has least so far.
    """
    load, owners, free = [0] * count, [0] * len(sizes), list[int]()
    for number in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        free = free or list(range(count))
        rank = min(free, key=lambda r: (load[r], r))
        free.remove(rank)
        load[rank] += sizes[number]
        owners[number] = rank
    return owners


def fullest(sizes: Sequence[int], count: int) -> int:
    """Return the sum of the sizes that the fullest of `count` ranks gets."""
    load = [0] * count
    for size, owner in zip(sizes, deal(sizes, count), strict=True):
        load[owner] += size
    return max(load)
