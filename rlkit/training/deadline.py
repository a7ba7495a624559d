"""Nothing waits for ever: a generator that shows no sign of life ends the run, and is named."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from torch import Tensor

from rlkit.types import (
    Generator,
    GeneratorDied,
    Prompt,
    PromptRequest,
    RefillingGenerator,
    Rollout,
    SamplingConfig,
)

_GRACE_S = 60.0


class Hung(RuntimeError):
    """A wait took too long; the message names what was awaited."""


def end_at_once(line: str) -> None:
    """Say `line`, show where every thread is, and end a process that cannot be interrupted."""
    print(f"rlkit: {line}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(all_threads=True)
    os._exit(1)


class Deadline:
    """A deadline watches one wait at a time, of the main thread; elsewhere it watches nothing.

    Silence raises Hung in the wait. A wait inside a library's own code, which Python cannot
    interrupt, ends the process when it does not come back in a minute either.
    """

    def __init__(
        self,
        *,
        seconds: float,
        option: str,
        grace_s: float = _GRACE_S,
        last_resort: Callable[[str], None] = end_at_once,
    ) -> None:
        """Allow `seconds` of silence, > 0; 0 = for ever.

        Args:
            seconds: Of silence, >= 0.
            option: What sets them, for the message.
            grace_s: Seconds from Hung to the last resort.
            last_resort: Gets the message when nothing else helps.
        """
        self._seconds = seconds
        self._option = option
        self._grace_s = grace_s
        self._last_resort = last_resort
        self._what = ""
        self._heard = 0.0
        self._watching = False

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Watch the block; raises Hung when `alive` is not called for too long."""
        if not self._seconds or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._start_watching()
        previous = signal.signal(signal.SIGALRM, self._raise)
        self._what = what
        self.alive()
        try:
            yield
        finally:
            self._what = ""
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, previous)

    def alive(self) -> None:
        """Note a sign of life; cheap enough for every token."""
        if self._what:
            self._heard = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self._what:
            raise Hung(self._message(self._what))

    def _message(self, what: str) -> str:
        return f"no sign of life for {self._seconds:g} s while waiting for {what} ({self._option})"

    def _start_watching(self) -> None:
        if not self._watching:
            self._watching = True
            threading.Thread(target=self._watch, name="deadline", daemon=True).start()

    def _watch(self) -> None:
        limit = self._seconds + self._grace_s
        while True:
            time.sleep(min(1.0, limit / 4))
            what = self._what
            if what and time.monotonic() - self._heard > limit:
                self._last_resort(self._message(what))
                return


class TimedGenerator:
    """Implements `rlkit.types.Generator` by another one, which may not fall silent."""

    def __init__(self, generator: Generator, deadline: Deadline, *, name: str) -> None:
        """Watch `generator`, called `name` in messages, whose progress calls `deadline.alive`."""
        self._generator = generator
        self._deadline = deadline
        self._name = name

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingConfig,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Rollout]]:
        """Sample completions; raises Hung when none gains a token for too long.

        Args:
            prompts: The prompts, as token ids.
            num_samples: Completions of each prompt, >= 1.
            sampling: The distribution to sample from.
            seeds: A seed for each completion, [prompt][sample].

        Returns:
            The rollouts, [prompt][sample].

        Raises:
            Hung: There was no sign of life.
        """
        return self._watched(
            f"{num_samples * len(prompts)} completions",
            lambda: self._generator.generate(
                prompts, num_samples=num_samples, sampling=sampling, seeds=seeds
            ),
        )

    def _watched(self, what: str, work: Callable[[], list[list[Rollout]]]) -> list[list[Rollout]]:
        with self._deadline.waiting(f"{self._name} to sample {what}"):
            try:
                return work()
            except GeneratorDied as error:
                if isinstance(error.__cause__, Hung):  # the deadline struck inside the engine
                    raise error.__cause__ from None
                raise

    def load_adapter(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Hand the adapter on; raises Hung when that takes too long."""
        with self._deadline.waiting(f"{self._name} to take version {version} of the policy"):
            self._generator.load_adapter(tensors, version)

    def close(self) -> None:
        """Close the generator, which may take no longer than any other wait."""
        with self._deadline.waiting(f"{self._name} to end"):
            self._generator.close()


class TimedRefillingGenerator(TimedGenerator):
    """Implements `rlkit.types.RefillingGenerator` by another one, which may not fall silent."""

    def __init__(self, generator: RefillingGenerator, deadline: Deadline, *, name: str) -> None:
        """Watch `generator` as `TimedGenerator` does."""
        super().__init__(generator, deadline, name=name)
        self._refilling = generator

    def prompts_at_once(self, num_samples: int) -> int:
        """Return the prompts of `num_samples` samples each that fill the generator."""
        return self._refilling.prompts_at_once(num_samples)

    def generate_from(
        self, requests: Iterator[PromptRequest], *, num_samples: int, sampling: SamplingConfig
    ) -> list[list[Rollout]]:
        """Sample the requests that the generator takes; raises Hung as `generate` does."""
        return self._watched(
            "the completions that it takes",
            lambda: self._refilling.generate_from(
                requests, num_samples=num_samples, sampling=sampling
            ),
        )


def timed(generator: Generator, deadline: Deadline, *, name: str) -> TimedGenerator:
    """Return `generator` under a deadline; one that refills still does."""
    if isinstance(generator, RefillingGenerator):
        return TimedRefillingGenerator(generator, deadline, name=name)
    return TimedGenerator(generator, deadline, name=name)
