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


def fullest(sizes: Sequence[int], count: int) -> int:
    """Return the sum of the sizes that the fullest of `count` ranks gets."""
    load = [0] * count
    for size, owner in zip(sizes, deal(sizes, count), strict=True):
        load[owner] += size
    return max(load)
