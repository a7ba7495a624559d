"""This module runs environments in workers that are killed when one misbehaves."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rlkit.environments.base import Action, Message, Turn
from rlkit.environments.config import EnvironmentConfig, EnvironmentSpec
from rlkit.environments.process import EnvironmentProcess
from rlkit.rewards.kept_process import wait_for

_log = logging.getLogger(__name__)
_MAX_FALSE_STARTS = 3
_PULSE_SECONDS = 0.2


class Begin(NamedTuple):
    """This asks for `start`."""

    prompt: Sequence[Mapping[str, object]] | str
    """The example's messages, or its text."""
    columns: Mapping[str, object]
    seed: int

    def message(self) -> dict[str, Any]:
        """Return what the worker is sent."""
        return {
            "example": {"prompt": self.prompt, "columns": dict(self.columns)},
            "seed": self.seed,
        }


class Continue(NamedTuple):
    """This asks for `step`."""

    state: str
    """JSON."""
    action: Action

    def message(self) -> dict[str, Any]:
        """Return what the worker is sent."""
        return {"state": self.state, "action": list(self.action)}


class Answer(NamedTuple):
    """This is what one call gave."""

    state: str
    turn: Turn
    seconds: float


class Fault(NamedTuple):
    """This is why one call gave nothing."""

    kind: str
    """`raised`, `timeout` or `crashed`."""
    message: str
    seconds: float


class EnvironmentPool:
    """The pool makes the calls of a run's environment; it keeps nothing between two of them.

    A call that raises or hangs is a fault of its own. One whose process dies, or has no memory or
    files left, is made once more in a fresh process. A step is a function of its state alone.

    Not for several threads at once.
    """

    def __init__(self, spec: EnvironmentSpec, config: EnvironmentConfig) -> None:
        """Start the workers without waiting; `start` waits until they have loaded."""
        self._spec = spec
        self._config = config
        self._false_starts = 0
        self._workers = [self._new() for _ in range(config.workers)]

    @property
    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the workers."""
        return tuple(worker.pid for worker in self._workers)

    @property
    def roles(self) -> tuple[str, ...]:
        """Return the roles of the environment's messages."""
        return tuple(self._hello()["roles"])

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """Return the JSON schemas of functions that the chat template shows."""
        return tuple(self._hello()["tools"])

    def start(self) -> None:
        """Wait until every worker has loaded the environment.

        Raises ValueError, naming the key, when it cannot be loaded.
        """
        while any(worker.hello is None for worker in self._workers):
            wait_for(self._workers, until=time.monotonic() + 0.1)
            for worker in self._workers:
                worker.read_output()
                worker.reply()
                self._check_start(worker)

    def run(
        self, calls: Sequence[Begin | Continue], *, pulse: Callable[[], None] = lambda: None
    ) -> list[Answer | Fault]:
        """Make calls, several at a time; return their answers in order.

        `pulse` is called several times a second; what it raises ends the wait.
        """
        for i, worker in enumerate(self._workers):
            if worker.job is not None:  # an earlier call was interrupted
                self._replace(i)
        self.start()
        waiting = deque(range(len(calls)))
        crashes: Counter[int] = Counter()
        found: dict[int, Answer | Fault] = {}
        while len(found) < len(calls):
            for worker in self._workers:
                if waiting and worker.idle:
                    job = waiting.popleft()
                    worker.submit(job, calls[job].message())
            wait_for(
                self._workers, until=min(self._next_deadline(), time.monotonic() + _PULSE_SECONDS)
            )
            pulse()
            for i, worker in enumerate(self._workers):
                asked, outcome = worker.job, self._look(worker)
                if outcome is None or asked is None:
                    continue
                if worker.job is not None or worker.gone:
                    self._replace(i)
                crashed = isinstance(outcome, Fault) and outcome.kind == "crashed"
                if crashed and crashes[asked] < 1:
                    crashes[asked] += 1
                    waiting.appendleft(asked)
                else:
                    found[asked] = outcome
        return [found[job] for job in range(len(calls))]

    def close(self) -> None:
        """End the workers: idle ones are asked to, busy ones killed; idempotent."""
        for worker in self._workers:
            if worker.idle:
                worker.hang_up()
        for worker in self._workers:
            if worker.idle:
                worker.join(seconds=1.0)
            worker.kill()
        self._workers = []

    def _look(self, worker: EnvironmentProcess) -> Answer | Fault | None:
        """Return what came of a worker's call; None while it is under way, or there was none."""
        worker.read_output()
        job = worker.job
        reply = worker.reply()
        if job is None:
            self._check_start(worker)
            return None
        seconds = time.monotonic() - worker.clock
        if reply is not None:
            return self._read(worker, reply, seconds)
        printed = f"; it printed: {worker.tail}" if worker.tail else ""
        if worker.gone:
            return Fault("crashed", f"the process {worker.kill()}{printed}", seconds)
        if seconds > self._config.timeout_s:
            limit = f"{self._config.timeout_s:g} s (environment.timeout_s)"
            return Fault("timeout", f"no answer within {limit}{printed}", seconds)
        return None

    def _read(
        self, worker: EnvironmentProcess, reply: Mapping[str, Any], seconds: float
    ) -> Answer | Fault:
        if "raised" in reply:
            if reply.get("spent"):
                worker.gone = True  # to be replaced
                return Fault("crashed", reply["raised"], seconds)
            return Fault("raised", reply["raised"], seconds)
        self._false_starts = 0
        turn = Turn(
            messages=tuple(Message(role, content) for role, content in reply["messages"]),
            reward=reply["reward"],
            done=reply["done"],
            info=reply["info"],
        )
        return Answer(reply["state"], turn, seconds)

    def _hello(self) -> Mapping[str, Any]:
        hello = self._workers[0].hello
        if hello is None:
            raise RuntimeError("start() must come first")
        return hello

    def _new(self) -> EnvironmentProcess:
        memory = self._config.memory_mb
        return EnvironmentProcess(
            self._spec.fn, self._spec.options, memory_bytes=0 if memory is None else memory << 20
        )

    def _replace(self, index: int) -> None:
        self._workers[index].kill()
        self._workers[index] = self._new()

    def _next_deadline(self) -> float:
        starting = [w.clock + self._config.startup_timeout_s for w in self._workers if not w.hello]
        busy = [w.clock + self._config.timeout_s for w in self._workers if w.job is not None]
        return min([*starting, *busy], default=time.monotonic())

    def _check_start(self, worker: EnvironmentProcess) -> None:
        """Raise when a worker cannot load the environment; replace one that died while idle."""
        if worker.hello is not None:
            if "error" in worker.hello:
                raise ValueError(worker.hello["error"])
            if worker.gone and worker in self._workers:
                self._count_false_start(f"an idle worker {worker.kill()}")
                self._replace(self._workers.index(worker))
            return
        if worker.gone:
            ended = worker.kill()
            printed = f"; it printed: {worker.tail}" if worker.tail else ""
            raise ValueError(f"environment.fn: importing {self._spec.fn} {ended}{printed}")
        seconds = self._config.startup_timeout_s
        if time.monotonic() - worker.clock > seconds:
            raise ValueError(f"environment.startup_timeout_s must be enough, got {seconds}")

    def _count_false_start(self, message: str) -> None:
        self._false_starts += 1
        if self._false_starts >= _MAX_FALSE_STARTS:
            raise RuntimeError(f"{message}, {self._false_starts} times in a row")
        _log.warning("%s; started a new one", message)
