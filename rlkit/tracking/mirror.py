"""A child process that can be killed sends a copy of the metrics to a tracking service.

The services' clients retry, block, fork helpers and register exit hooks; in this process each of
those could hold the run. The child gets JSON lines on its standard input and acknowledges each.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from rlkit.tracking.base import (
    EvalRecord,
    Level,
    Outcome,
    Phase,
    RunInfo,
    SampleRow,
    Status,
    StepRecord,
)
from rlkit.tracking.files import encode

_LOG = logging.getLogger(__name__)
_STARTUP_SECONDS = 40.0
"""For imports on a busy machine and the service's own handshake; the run does not wait for it."""


class Service(StrEnum):
    """`rlkit.tracking.services` knows these services."""

    wandb = "wandb"
    trackio = "trackio"
    tensorboard = "tensorboard"


class Mirror:
    """A mirror queues what it is told and returns at once; its own thread deals with the child.

    A child that dies, complains or says nothing for `timeout_s` is killed, with one warning in the
    log. From then on, calls do nothing.
    """

    def __init__(
        self,
        service: Service,
        options: Mapping[str, object],
        *,
        run_dir: Path,
        timeout_s: float,
        num_samples: int = 0,
        hide: Callable[[str], str] = str,
    ) -> None:
        """Prepare a child for `service`; it starts with the run.

        Args:
            service: Where the metrics go.
            options: The service's own options.
            run_dir: The run's folder, where the child keeps its log.
            timeout_s: Seconds of silence after which the child is given up, > 0.
            num_samples: Samples of a step or an evaluation that are sent, >= 0.
            hide: Takes secrets out of a text, before a sample leaves the machine.
        """
        self._hide = hide
        self._num_samples = num_samples
        self._reward_names: tuple[str, ...] = ()
        self._service = service
        self._options = dict(options)
        self._log_path = run_dir / f"{service.value}.log"
        self._timeout_s = timeout_s
        self._events: queue.SimpleQueue[dict[str, object] | None] = queue.SimpleQueue()
        self._child: subprocess.Popen[bytes] | None = None
        self._off = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=service.value, daemon=True)

    def start(self, info: RunInfo) -> None:
        run_dir = info.run_dir.resolve()
        event: dict[str, object] = {
            "event": "start",
            "service": self._service.value,
            "options": self._options,
            "name": info.title or info.name,
            "group": info.group,
            "id": hashlib.sha256(str(run_dir).encode()).hexdigest()[:16],
            "run_dir": str(run_dir),
            "config": {**info.config, "algorithm_name": info.algorithm, "device": info.device},
            "versions": dict(info.versions),
        }
        self._reward_names = info.reward_names
        self._put(event)
        self._thread.start()

    def progress(self, phase: Phase, done: int, total: int) -> None:
        """Do nothing, for progress is not worth a message."""

    def step(self, record: StepRecord) -> None:
        self._put({"event": "log", "step": record.step, "metrics": dict(record.metrics)})
        self._put_samples("completions", record.step, record.samples)

    def evaluation(self, record: EvalRecord) -> None:
        metrics = {f"eval/{name}": value for name, value in record.metrics.items()}
        measure = record.measure.value
        names = (f"eval/{measure}", f"eval/{measure}_low", f"eval/{measure}_high")
        metrics |= dict(zip(names, record.interval, strict=True))
        self._put({"event": "log", "step": record.step, "metrics": metrics})
        self._put_samples(f"completions/{record.label}", record.step, record.samples)

    def message(self, level: Level, text: str) -> None:
        """Do nothing, for messages stay local."""

    def finish(self, outcome: Outcome) -> None:
        code = 0 if outcome.status is Status.completed else 1
        self._put({"event": "finish", "exit_code": code})

    def close(self, deadline_s: float) -> None:
        """Let the child finish within the deadline and `timeout_s`, then kill it; idempotent."""
        if self._thread.is_alive():
            self._events.put(None)
            wait_s = min(deadline_s, self._timeout_s)
            self._thread.join(wait_s)
            if self._thread.is_alive():
                self._fail(f"did not finish within {wait_s:.0f} s")
        self._kill()

    def _put_samples(self, name: str, step: int, samples: Sequence[SampleRow]) -> None:
        """Send the first few samples as a table, like the columns of the Parquet files."""
        shown = samples[: self._num_samples]
        if not shown:
            return
        task = list(dict.fromkeys(name for row in shown for name in row.columns))
        columns = ["prompt", "completion", *task, *self._reward_names, "reward"]
        rows = [
            [
                *(self._hide(row.prompt), self._hide(row.completion)),
                *(self._hide(_text(row.columns.get(name))) for name in task),
                *row.components,
                row.reward,
            ]
            for row in shown
        ]
        self._put({"event": "table", "step": step, "name": name, "columns": columns, "rows": rows})

    def _put(self, event: dict[str, object]) -> None:
        if not self._off.is_set():
            self._events.put(event)

    def _serve(self) -> None:
        """Run the thread: start the child, hand over event by event, stop at None."""
        try:
            self._child = self._spawn()
            for event in iter(self._events.get, None):
                first = event["event"] == "start"
                self._deliver(event, max(self._timeout_s, _STARTUP_SECONDS) if first else None)
            assert self._child.stdin is not None
            self._child.stdin.close()
            self._child.wait()  # `close` kills it when this takes too long
        except (OSError, RuntimeError, ValueError) as error:
            self._fail(str(error) or type(error).__name__)

    def _spawn(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with self._log_path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "rlkit.tracking.mirror_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the run; and its helpers die with it
                bufsize=0,
            )

    def _deliver(self, event: Mapping[str, object], timeout_s: float | None) -> None:
        assert self._child is not None and self._child.stdin and self._child.stdout
        end = time.monotonic() + (timeout_s or self._timeout_s)
        data = memoryview((encode(event) + "\n").encode())
        fd = self._child.stdin.fileno()
        os.set_blocking(fd, False)
        answer = b""
        with contextlib.suppress(BrokenPipeError):  # its last words tell why
            while data:
                _, writable, _ = select.select([], [fd], [], max(0.0, end - time.monotonic()))
                if not writable:
                    raise RuntimeError("takes no more data")
                data = data[os.write(fd, data) :]
        while not answer.endswith(b"\n"):
            out = self._child.stdout.fileno()
            readable, _, _ = select.select([out], [], [], max(0.0, end - time.monotonic()))
            if not readable:
                raise RuntimeError(f"did not answer within {timeout_s or self._timeout_s:.0f} s")
            chunk = os.read(out, 4096)
            if not chunk:
                raise RuntimeError(f"ended; see {self._log_path}")
            answer += chunk
        if error := json.loads(answer).get("error"):
            raise RuntimeError(error)

    def _fail(self, reason: str) -> None:
        if not self._off.is_set():
            self._off.set()
            _LOG.warning(
                "%s is off: %s. The run goes on; its folder has everything.",
                self._service.value,
                reason,
            )
        self._kill()

    def _kill(self) -> None:
        child = self._child
        if child is None or child.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5.0)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
