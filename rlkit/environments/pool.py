"""This module runs environments in workers that are killed when one misbehaves."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
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


class OpenCalls:
    """Calls of an environment that are under way; more may be added before the others end."""

    def __init__(self, pool: EnvironmentPool) -> None:
        """Make calls with the workers of `pool`, which are all idle."""
        self._pool = pool
        self._calls: dict[int, Begin | Continue] = {}
        self._waiting: deque[int] = deque()
        self._crashes: Counter[int] = Counter()

    @property
    def count(self) -> int:
        """Return the number of calls without an outcome."""
        return len(self._calls)

    def add(self, number: int, call: Begin | Continue) -> None:
        """Make a call; `number` is the caller's and no other open call has it."""
        self._calls[number] = call
        self._waiting.append(number)

    def look(self, *, seconds: float) -> dict[int, Answer | Fault]:
        """Return the outcomes that have come, after at most `seconds` of waiting for one."""
        pool, found = self._pool, dict[int, Answer | Fault]()
        self._submit()
        pool.wait(seconds)
        for number, outcome in pool.collect():
            crashed = isinstance(outcome, Fault) and outcome.kind == "crashed"
            if crashed and self._crashes[number] < 1:
                self._crashes[number] += 1
                self._waiting.appendleft(number)
            else:
                found[number] = outcome
                del self._calls[number]
        self._submit()
        return found

    def _submit(self) -> None:
        for worker in self._pool.idle_workers():
            if self._waiting:
                number = self._waiting.popleft()
                worker.submit(number, self._calls[number].message())


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
        open_calls = self.open()
        for number, call in enumerate(calls):
            open_calls.add(number, call)
        found: dict[int, Answer | Fault] = {}
        while open_calls.count:
            found.update(open_calls.look(seconds=_PULSE_SECONDS))
            pulse()
        return [found[number] for number in range(len(calls))]

    def open(self) -> OpenCalls:
        """Return a place for calls that are made one after the other; it replaces the one before.

        Raises ValueError when the environment cannot be loaded.
        """
        for i, worker in enumerate(self._workers):
            if worker.job is not None:  # an earlier call was interrupted
                self._replace(i)
        self.start()
        return OpenCalls(self)

    def idle_workers(self) -> list[EnvironmentProcess]:
        """Return the workers that can take a call."""
        return [worker for worker in self._workers if worker.idle]

    def wait(self, seconds: float) -> None:
        """Wait until a worker says something or its time is up, for at most `seconds`."""
        wait_for(self._workers, until=min(self._next_deadline(), time.monotonic() + seconds))

    def collect(self) -> Iterator[tuple[int, Answer | Fault]]:
        """Yield what came of the workers' calls, and replace workers that were lost by it."""
        for i, worker in enumerate(self._workers):
            asked, outcome = worker.job, self._look(worker)
            if outcome is None or asked is None:
                continue
            if worker.job is not None or worker.gone:
                self._replace(i)
            yield asked, outcome

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
        if reply is not None:  # its own clock: nobody may have looked for a while
            return self._read(worker, reply, min(seconds, float(reply.get("seconds", seconds))))
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
