"""A clock of wall-clock seconds per phase: it shows where a step's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rlkit.tracking.base import Phase


class StepClock:
    """A clock adds up the seconds of each phase of one step.

    CUDA work is asynchronous, so each phase waits for the device at both ends. Otherwise the time
    of one phase would be booked on the next.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = time.perf_counter()
        self._seconds: dict[Phase, float] = dict.fromkeys(
            (phase for phase in Phase if phase is not Phase.evaluate), 0.0
        )

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Book the body's seconds on `phase`; phases may come more than once in a step."""
        start = self._now()
        try:
            yield
        finally:
            self._seconds[phase] += self._now() - start

    def metrics(self) -> dict[str, float]:
        """Return `time/{phase}` for every phase, `time/step`, and as `time/other` what is left."""
        total = self._now() - self._start
        metrics = {f"time/{phase.value}": seconds for phase, seconds in self._seconds.items()}
        metrics["time/other"] = total - sum(self._seconds.values())
        metrics["time/step"] = total
        return metrics

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
