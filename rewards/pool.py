"""This module scores completions in workers that are killed when a function misbehaves."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rlkit.rewards.config import OnFailure, RewardConfig, RewardSpec
from rlkit.rewards.kept_process import wait_for
from rlkit.rewards.process import Worker
from rlkit.rewards.scorers import BatchReplies, BatchScorer, Threads
from rlkit.rewards.scores import Scores, ScoreSheet, check_failures
from rlkit.rewards.wire import WHOLE_GROUP, Failure, Unit, encode_group

if TYPE_CHECKING:
    from rlkit.types import Completion

_log = logging.getLogger(__name__)
_MAX_FALSE_STARTS = 3
_CHECK_EVERY_S = 0.2
"""Between two looks at whether the run is to stop, while functions are busy."""


class RewardPool:
    """The pool runs the reward functions of a run in processes of their own.

    It is a context manager, and not for several threads at once.

    A call that raises, hangs, crashes or returns nonsense gives NaN for its samples and is counted
    by kind; the others go on. Construction starts the workers without waiting; `start` waits, and
    raises ValueError when a function cannot be loaded.
    """

    def __init__(
        self,
        specs: Sequence[RewardSpec],
        config: RewardConfig,
        scorers: Mapping[str, BatchScorer] = MappingProxyType({}),
    ) -> None:
        """Start workers for the functions of `specs`; `scorers` compute those that they name."""
        self._specs, self._config = tuple(specs), config
        self._places = [k for k, spec in enumerate(specs) if spec.name not in scorers]
        by_place = {k: scorers[s.name] for k, s in enumerate(specs) if s.name in scorers}
        self._beside = Threads(by_place)
        self._functions = [
            {"name": spec.name, "fn": spec.fn, "options": dict(spec.options)}
            for spec in (specs[k] for k in self._places)
        ]
        self._workers = [self._new_worker() for _ in range(config.workers * bool(self._functions))]
        self._false_starts = 0
        self._verified = self._started = False

    @property
    def specs(self) -> tuple[RewardSpec, ...]:
        return self._specs

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self._specs)

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(spec.weight for spec in self._specs)

    @property
    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the workers."""
        return tuple(worker.pid for worker in self._workers)

    def start(self, *, check: Callable[[], None] = lambda: None) -> None:
        """Wait until every worker has loaded the functions, and every scorer is ready.

        Raises ValueError, naming the key, for a function that cannot be loaded; and what `check`
        raises, which is called several times a second.
        """
        self.verify(check=check)
        if not self._started:
            self._beside.begin(lambda scorer: scorer.start())(check)
            self._started = True

    def verify(self, *, check: Callable[[], None] = lambda: None) -> None:
        """Do as `start`, but let no scorer load its weights."""
        if not self._verified:
            self._beside.begin(lambda scorer: scorer.check())(check)
            self._verified = True
        self._start_workers(check)

    def _start_workers(self, check: Callable[[], None]) -> None:
        while any(worker.per_sample is None for worker in self._workers):
            check()
            wait_for(self._workers, until=time.monotonic() + 0.1)
            for worker in self._workers:
                worker.read_output()
                worker.read_replies()
                self._check_start(worker)

    @property
    def scorers(self) -> Sequence[BatchScorer]:
        return tuple(self._beside.scorers.values())

    def keep_in(self, run_dir: Path) -> None:
        """Let the scorers keep what a resumed run needs in the run's folder."""
        for scorer in self.scorers:
            scorer.keep_in(run_dir)

    def score(
        self, groups: Sequence[Sequence[Completion]], *, check: Callable[[], None] = lambda: None
    ) -> Scores:
        """Score each group of one prompt's completions with every function.

        Ends within `reward.step_timeout_s` and the times of the scorers, whatever the functions do.
        What `check` raises ends it, too; it is called several times a second.

        Raises ValueError or RuntimeError when workers cannot be started any more, when more failed
        than `reward.max_failure_rate` allows, or when a judge's budget is spent.
        """
        self.start(check=check)
        scored = self._beside.begin(lambda scorer: scorer.score(groups))
        scores = self._score(groups, scored, check)
        check_failures(scores, self._specs, groups, max_rate=self._config.max_failure_rate)
        return scores

    def try_functions(self, groups: Sequence[Sequence[Completion]]) -> Scores:
        """Score with the functions alone; what scorers would say is NaN."""
        return self._score(groups, lambda check: {}, lambda: None)

    def _score(
        self,
        groups: Sequence[Sequence[Completion]],
        scored: Callable[[Callable[[], None]], Mapping[int, BatchReplies]],
        check: Callable[[], None],
    ) -> Scores:
        start = time.perf_counter()
        for i, worker in enumerate(self._workers):
            if worker.units:  # an earlier call was interrupted
                self._replace(i)
        self._start_workers(check)
        sheet = ScoreSheet(self._specs, groups)
        self._run(sheet, groups, self._units(groups), check)
        self._log_printed()
        for place, replies in scored(check).items():
            sheet.add_batch(place, replies)
        drop = self._config.on_failure is OnFailure.drop
        return sheet.scores(seconds=time.perf_counter() - start, drop_failed=drop)

    def close(self) -> None:
        """End the workers: idle ones are asked to, busy ones killed.

        It takes at most 2 s and is idempotent.
        """
        self._beside.close()
        idle = [worker for worker in self._workers if worker.idle]
        for worker in idle:
            worker.hang_up()
        give_up = time.monotonic() + 1.0
        for worker in idle:
            worker.join(seconds=max(0.0, give_up - time.monotonic()))
        for worker in self._workers:
            worker.kill()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _placed(self, unit: Unit) -> Unit:
        """Return a worker's call with its function's place among all of the run."""
        return unit._replace(function=self._places[unit.function])

    def _units(self, groups: Sequence[Sequence[Completion]]) -> list[Unit]:
        """Return all calls of the batch, a group's calls adjacent."""
        per_sample = (self._workers[0].per_sample or []) if self._workers else []
        units = []
        for g, group in enumerate(groups):
            for f, one_by_one in enumerate(per_sample):
                if one_by_one:
                    units += [Unit(f, g, s) for s in range(len(group))]
                elif group:
                    units.append(Unit(f, g, WHOLE_GROUP))
        return units

    def _run(
        self,
        sheet: ScoreSheet,
        groups: Sequence[Sequence[Completion]],
        units: Sequence[Unit],
        check: Callable[[], None],
    ) -> None:
        share = -(-len(units) // max(1, len(self._workers))) or 1
        queue = deque(list(units[i : i + share]) for i in range(0, len(units), share))
        encoded: dict[int, Any] = {}
        give_up = time.monotonic() + self._config.step_timeout_s
        while queue or any(worker.units for worker in self._workers):
            for worker in self._workers:
                if queue and worker.idle:
                    needed = {unit.group for unit in queue[0]}
                    for g in needed - encoded.keys():
                        encoded[g] = encode_group(groups[g])
                    worker.submit(queue.popleft(), {g: encoded[g] for g in sorted(needed)})
            check()
            look = time.monotonic() + _CHECK_EVERY_S
            wait_for(self._workers, until=min([give_up, look, *self._deadlines()]))
            for i, worker in enumerate(self._workers):
                worker.read_output()  # before the replies: what a call printed counts against it
                for unit, reply in worker.read_replies():
                    sheet.add(self._placed(unit), reply)
                self._check_start(worker)
                self._judge(i, sheet, queue)
            if time.monotonic() >= give_up:
                self._abandon(sheet, queue)
        self._false_starts = 0

    def _judge(self, i: int, sheet: ScoreSheet, queue: deque[list[Unit]]) -> None:
        """Kill and replace worker `i` if it is dead, late or too loud; blame its current call."""
        worker, config = self._workers[i], self._config
        late = bool(worker.units) and time.monotonic() - worker.clock > config.timeout_s
        loud = bool(worker.units) and worker.printed > config.max_output_bytes
        if not (worker.gone or late or loud):
            return
        elapsed = time.monotonic() - worker.clock
        units, blamed = worker.units, worker.current
        kind, message = worker.kill()
        if late:
            kind, message = Failure.timeout, f"still busy after {config.timeout_s} s"
        if loud:
            kind, message = Failure.output, f"printed more than {config.max_output_bytes} bytes"
        if blamed is not None:
            printed = f"; it printed: {worker.tail}" if worker.tail and not loud else ""
            unit = self._placed(units.pop(blamed))
            sheet.fail(unit, kind, message + printed, seconds=elapsed)
        elif units:  # it died between two batches: nobody's fault that we know of
            self._count_false_start(f"a reward worker {message} before its first call")
        if units:
            queue.appendleft(units)
        self._replace(i)

    def _abandon(self, sheet: ScoreSheet, queue: deque[list[Unit]]) -> None:
        """Count everything unanswered as timed out: the batch is out of time."""
        message = f"the batch took more than {self._config.step_timeout_s} s"
        for i, worker in enumerate(self._workers):
            if worker.units:
                queue.append(worker.units)
                self._replace(i)
        for units in queue:
            for unit in units:
                sheet.fail(self._placed(unit), Failure.timeout, message, seconds=0.0)
        queue.clear()

    def _log_printed(self) -> None:
        """Put what the functions printed into the log, each line with its function."""
        for worker in self._workers:
            worker.read_output()
            _log_lines(worker)

    def _replace(self, i: int) -> None:
        self._workers[i].kill()
        _log_lines(self._workers[i])
        self._workers[i] = self._new_worker()

    def _new_worker(self) -> Worker:
        return Worker(self._functions, max_memory_bytes=self._config.memory_of_a_worker)

    def _deadlines(self) -> list[float]:
        """Return the times at which a worker is looked at even if it says nothing."""
        config = self._config
        starting = [
            w.clock + config.startup_timeout_s for w in self._workers if w.per_sample is None
        ]
        return starting + [w.clock + config.timeout_s for w in self._workers if w.units]

    def _check_start(self, worker: Worker) -> None:
        if worker.load_error is not None:
            raise ValueError(worker.load_error)
        if worker.per_sample is not None:
            return
        seconds = self._config.startup_timeout_s
        if worker.gone:
            _, message = worker.kill()
            targets = ", ".join(spec.fn for spec in self._specs)
            printed = f"; it printed: {worker.tail}" if worker.tail else ""
            raise ValueError(f"reward.functions: importing {targets} {message}{printed}")
        if time.monotonic() - worker.clock > seconds:
            raise ValueError(f"reward.startup_timeout_s must be enough to import, got {seconds}")

    def _count_false_start(self, message: str) -> None:
        self._false_starts += 1
        if self._false_starts >= _MAX_FALSE_STARTS:
            raise RuntimeError(f"{message}, {self._false_starts} times in a row")
        _log.warning("%s; started a new one", message)


def _log_lines(worker: Worker) -> None:
    for line in worker.said.take():
        _log.info("reward %s printed: %s", line.function or "import", line.text)
