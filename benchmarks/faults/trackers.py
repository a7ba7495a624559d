"""F10: a tracking service refuses, swallows, answers 500, dies in mid-run or hangs at the end."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tracked_run import evaluation, info, record

from benchmarks.faults.row import Row
from benchmarks.faults.servers import KINDS, serving
from rlkit.tracking import (
    ConsoleMode,
    Outcome,
    Redactor,
    Status,
    TensorboardConfig,
    TrackerConfig,
    TrackioConfig,
    WandbConfig,
    build_tracker,
    read_metrics,
)

_LIMIT_S = 30.0
_STEPS = 12

# A client as naive as can be: it blocks for ever on every answer. The real one is used if it is
# installed; both speak HTTP to a server on loopback.
_CLIENT = """
import json, os, urllib.request
def send(path, content):
    data = json.dumps(content, default=str).encode()
    urllib.request.urlopen(os.environ["WANDB_BASE_URL"] + path, data=data).read()
class Settings:
    def __init__(self, **options):
        pass
class Table:
    def __init__(self, columns, data):
        self.content = [columns, data]
class Run:
    def log(self, metrics, step):
        send("/log", [step, {k: getattr(v, "content", v) for k, v in metrics.items()}])
    def finish(self, exit_code):
        send("/finish", exit_code)
def init(**options):
    send("/init", {})
    return Run()
"""


def run(count: int, folder: Path) -> Row:
    """Mirror `count` runs to servers that misbehave; wandb's own client is one of the two if there.

    Survived is a run whose calls return at once, that is over within 30 s, and whose folder has
    every step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    real = importlib.util.find_spec("wandb") is not None
    clients = ["stand-in", *(["wandb"] if real else [])]
    cases = [(kind, client) for client in clients for kind in KINDS]
    survived, slowest, notes = 0, 0.0, list[str]()
    for number in range(count):
        kind, client = cases[number % len(cases)]
        # wandb's client sends its metrics in one piece every some seconds: its server dies at once.
        most_data = 0 if client == "wandb" else 2
        with serving(kind, most_data=most_data) as address, _client(folder, client, address):
            config = WandbConfig(console=ConsoleMode.quiet, plot=False)
            seconds, wrong = _drive(folder / f"run_{number}", config)
        slowest = max(slowest, seconds)
        survived += not wrong
        notes += [f"{client}, {kind}: {wrong}"] if wrong else []
    injected = count
    for name, local in _local_services(folder):
        seconds, wrong = _drive(folder / name, local)
        injected, survived = injected + 1, survived + (not wrong)
        notes += [f"{name}: {wrong}"] if wrong else []
    said = "; ".join(notes[:3]) or "every step is in the run's folder"
    used = "the naive stand-in and wandb's own client" if real else "a naive stand-in client"
    note = f"{used} against servers on loopback; most added {slowest:.1f} s (goal 30); {said}"
    return Row("F10 tracking services", injected, survived, injected - survived, note)


def _local_services(folder: Path) -> list[tuple[str, TrackerConfig]]:
    """Return the services that are installed and write locally, with a folder they cannot have."""
    options = {"console": ConsoleMode.quiet, "plot": False}
    found: list[tuple[str, TrackerConfig]] = []
    if importlib.util.find_spec("tensorboard"):
        found.append(("tensorboard", TensorboardConfig(**options)))  # type: ignore[arg-type]
    if importlib.util.find_spec("trackio"):
        found.append(("trackio", TrackioConfig(**options)))  # type: ignore[arg-type]
    return found


def _drive(run_dir: Path, config: TrackerConfig) -> tuple[float, str]:
    """Make a whole run of calls; return the seconds that it took, and what went wrong."""
    if isinstance(config, TensorboardConfig):  # its events cannot be written
        run_dir.mkdir(parents=True)
        (run_dir / "tensorboard").write_text("a file, not a folder")
    begun = time.monotonic()
    tracker = build_tracker(config, run_dir=run_dir, redactor=Redactor())
    tracker.start(info(run_dir, num_steps=_STEPS))
    for step in range(_STEPS):
        tracker.step(record(step))
    tracker.evaluation(evaluation("after", _STEPS, rate=0.9))
    tracker.finish(Outcome(status=Status.completed, wall_seconds=1.0))
    calls_s = time.monotonic() - begun
    tracker.close(25.0)
    seconds = time.monotonic() - begun
    steps = [line["step"] for line in read_metrics(run_dir)]
    if steps != list(range(_STEPS)):
        return seconds, f"lines of steps {steps}"
    if seconds > _LIMIT_S or calls_s > 5.0:
        return seconds, f"calls took {calls_s:.1f} s, all {seconds:.1f} s"
    return seconds, ""


@contextlib.contextmanager
def _client(folder: Path, kind: str, address: str) -> Iterator[None]:
    """Let the mirror's child find the client and the address."""
    modules = folder / "modules"
    modules.mkdir(exist_ok=True)
    (modules / "wandb.py").write_text(_CLIENT)
    before = dict(os.environ)
    os.environ |= {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}
    if kind == "stand-in":
        sys.path.insert(0, str(modules))
    try:
        yield
    finally:
        if kind == "stand-in":
            sys.path.remove(str(modules))
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
