"""Seconds that a rank spends with the other ranks, call by call, on the host and on its card."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class Spans:
    """A list of what each call took; all ranks make the same calls, so their lists match."""

    def __init__(self) -> None:
        self._found: list[float | tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """Measure the body by the clock of this process."""
        start = time.perf_counter()
        yield
        self._found.append(time.perf_counter() - start)

    @contextmanager
    def on_card(self) -> Iterator[None]:
        """Measure the body's work on the current stream, which goes on after the body ends."""
        make: Any = torch.cuda.Event
        start, end = (make(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._found.append((start, end))

    def take(self) -> list[float]:
        """Return the seconds of each call since the last take, and forget them.

        It waits for the card to finish those that are under way.
        """
        found, self._found = self._found, []
        return [_seconds(span) for span in found]


def costs(lists: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return what the calls cost, from each rank's seconds of the same calls.

    The rank that comes last to a call waits for nobody: its seconds are those of the messages.

    Returns:
        `time/ranks`, seconds that messages and sums took; `time/ranks/wait`, the most that one
        rank waited for the others beyond that.
    """
    messages = [min(call) for call in zip(*lists, strict=True)]
    total = sum(messages)
    return {"time/ranks": total, "time/ranks/wait": max(map(sum, lists)) - total}


def _seconds(span: float | tuple[torch.cuda.Event, torch.cuda.Event]) -> float:
    if isinstance(span, float):
        return span
    start, end = span
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000.0
