"""F10: a tracking service that refuses, hangs, dies or is missing neither stops nor holds a run.

The real child process runs; only the third-party client is a stand-in on the import path.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tracked_run

from rlkit.tracking import (
    ConsoleMode,
    Outcome,
    Redactor,
    Status,
    WandbConfig,
    build_tracker,
    read_metrics,
    services,
)
from rlkit.tracking.config import WandbMode
from rlkit.tracking.mirror import Mirror, Service

_CLIENT = """
import json, os, time, sys
RECORD = {record!r}
def note(what):
    with open(RECORD, "a") as file:
        file.write(json.dumps(what) + "\\n")
class Settings:
    def __init__(self, **options):
        self.options = options
class Table:
    def __init__(self, columns, data):
        self.content = [columns, data]
class Run:
    def log(self, metrics, step):
        {log}
        metrics = {{k: getattr(v, "content", v) for k, v in metrics.items()}}
        note(["log", step, metrics])
    def finish(self, exit_code):
        {finish}
        note(["finish", exit_code])
def init(**options):
    {init}
    print("noise on standard output")
    note(["init", {{k: v for k, v in options.items() if k != "settings"}}, os.getpid()])
    return Run()
"""


def client(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    init: str = "pass",
    log: str = "pass",
    finish: str = "pass",
) -> Path:
    """Put a module `wandb` on the import path; returns the file where it notes its calls."""
    record = folder / "calls.jsonl"
    package = folder / "modules"
    package.mkdir()
    text = _CLIENT.format(record=str(record), init=init, log=log, finish=finish)
    (package / "wandb.py").write_text(text)
    monkeypatch.syspath_prepend(package)
    return record


def drive(run_dir: Path, *, timeout_s: float, pause_s: float = 0.0) -> tuple[float, float]:
    """A whole run; returns the seconds of all calls but `close`, and those of `close`."""
    config = WandbConfig(console=ConsoleMode.quiet, timeout_seconds=timeout_s, plot=False)
    redactor = Redactor(["hf_canary123456"])
    tracker = build_tracker(config, run_dir=run_dir, redactor=redactor)
    start = time.monotonic()
    tracker.start(tracked_run.info(run_dir))
    for step in range(12):
        tracker.step(tracked_run.record(step))
        time.sleep(pause_s)
    tracker.evaluation(tracked_run.evaluation("after", 12, rate=0.9))
    tracker.finish(Outcome(status=Status.completed, wall_seconds=1.0))
    middle = time.monotonic()
    tracker.close(25.0)
    return middle - start - 12 * pause_s, time.monotonic() - middle


def calls(record: Path) -> list[list[object]]:
    return [json.loads(line) for line in record.read_text().splitlines()]


def _is_table(call: list[object]) -> bool:
    metrics = call[2] if call[0] == "log" else None
    return isinstance(metrics, dict) and any(isinstance(v, list) for v in metrics.values())


def warnings(run_dir: Path) -> list[str]:
    lines = (run_dir / "log.txt").read_text().splitlines()
    return [line.split("tracking.mirror: ")[1] for line in lines if "tracking.mirror" in line]


def test_everything_arrives_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = client(tmp_path, monkeypatch)
    drive(tmp_path / "run", timeout_s=20)
    everything = calls(record)
    tables = [c for c in everything if _is_table(c)]
    heard = [call for call in everything if call not in tables]
    assert [call[1] for call in tables] == [*range(12), 12]
    shown = tables[3][2]
    assert isinstance(shown, dict)
    columns, rows = shown["completions"]
    assert columns == ["prompt", "completion", "answer", *tracked_run.REWARDS, "reward"]
    first = tracked_run.record(3).samples[0]
    assert len(rows) == 8
    assert rows[0] == [
        *(first.prompt, first.completion, first.columns["answer"]),
        *first.components,
        first.reward,
    ]
    assert list(tables[-1][2]) == ["completions/after"]  # type: ignore[call-overload]
    options = heard[0][1]
    assert isinstance(options, dict) and heard[0][2] != os.getpid()
    assert options["name"] == "echo-seed0" and options["resume"] == "allow"
    assert options["mode"] is None and options["group"] is None  # wandb then reads WANDB_MODE
    assert options["config"]["algorithm.clip_low"] == 0.2
    assert options["config"]["model.hub_token"] == "***"
    assert [call[1] for call in heard[1:-1]] == [*range(12), 12]
    assert [call[2] for call in heard[1:13]] == [tracked_run.record(s).metrics for s in range(12)]
    assert sorted(heard[13][2]) == ["eval/success", "eval/success_high", "eval/success_low"]  # type: ignore[call-overload]
    assert heard[-1] == ["finish", 0]
    assert warnings(tmp_path / "run") == []
    assert "noise on standard output" in (tmp_path / "run" / "wandb.log").read_text()


@pytest.mark.parametrize(
    ("where", "what", "reason"),
    [
        ("init", "raise ConnectionError('refused')", "ConnectionError: refused"),
        ("init", "sys.exit(3)", "SystemExit: 3"),
        ("init", "os._exit(3)", "ended; see"),
        ("init", "time.sleep(1000)", "did not finish within 3 s"),
        ("log", "if step == 5: raise ValueError('500 server error')", "500 server error"),
        ("log", "if step == 5: os.kill(os.getpid(), 9)", "ended; see"),
        ("log", "if step == 5: time.sleep(1000)", "did not finish within 3 s"),
        ("finish", "time.sleep(1000)", "did not finish within 3 s"),
        ("finish", "raise OSError('upload failed')", "OSError: upload failed"),
        ("finish", "import atexit; atexit.register(time.sleep, 1000)", "within 3 s"),
    ],
)
def test_a_bad_service_costs_one_warning_and_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, what: str, reason: str
) -> None:
    client(tmp_path, monkeypatch, **{where: what})
    run_dir = tmp_path / "run"
    calls_s, close_s = drive(run_dir, timeout_s=3)
    assert calls_s < 2.0, "the run waited for the service"
    assert close_s < 4.0
    [warning] = warnings(run_dir)
    assert reason in warning and "The run goes on" in warning
    assert [line["step"] for line in read_metrics(run_dir)] == list(range(12))
    assert len(list((run_dir / "completions").glob("step-*.parquet"))) == 12


def test_a_service_that_hangs_is_given_up_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(tmp_path, monkeypatch, log="if step == 0: time.sleep(1000)")
    calls_s, close_s = drive(tmp_path / "run", timeout_s=1.5, pause_s=0.5)
    assert calls_s < 2.0 and close_s < 0.5
    [warning] = warnings(tmp_path / "run")
    assert "did not answer within 2 s" in warning or "did not answer within 1 s" in warning


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "modules"
    package.mkdir()
    (package / "wandb.py").write_text("raise ModuleNotFoundError(\"No module\", name='wandb')")
    monkeypatch.syspath_prepend(package)
    drive(tmp_path / "run", timeout_s=20)
    [warning] = warnings(tmp_path / "run")
    assert "wandb is not installed: pip install 'rlkit-lm[wandb]'" in warning


def test_close_leaves_no_process_even_when_the_client_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = "import subprocess; note(subprocess.Popen(['sleep', '1000']).pid)"
    record = client(tmp_path, monkeypatch, init=helper, finish="time.sleep(1000)")
    drive(tmp_path / "run", timeout_s=2)
    pids = [int(line) for line in record.read_text().splitlines() if line.isdigit()]
    assert len(pids) == 1
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _alive(pids[0]):
        time.sleep(0.05)
    assert not _alive(pids[0])


def test_close_without_start_and_twice(tmp_path: Path) -> None:
    mirror = Mirror(Service.wandb, {}, run_dir=tmp_path, timeout_s=1.0)
    mirror.close(1.0)
    mirror.close(1.0)


def test_a_run_that_dies_is_closed_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child sees its input end without a word, as after SIGKILL of the run."""
    record = client(tmp_path, monkeypatch)
    mirror = Mirror(Service.wandb, _OPTIONS, run_dir=tmp_path, timeout_s=20.0)
    mirror.start(tracked_run.info(tmp_path))
    mirror.step(tracked_run.record(0))
    mirror.close(20.0)
    assert [call[0] for call in calls(record)] == ["init", "log", "finish"]
    assert calls(record)[-1] == ["finish", 1]


_OPTIONS: dict[str, object] = {"project": "rlkit", "entity": None, "mode": "online"}


def _alive(pid: int) -> bool:
    """Whether the process runs; a killed one that nobody has reaped yet does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def test_ctrl_c_does_not_reach_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = client(tmp_path, monkeypatch)
    mirror = Mirror(Service.wandb, _OPTIONS, run_dir=tmp_path, timeout_s=20.0)
    mirror.start(tracked_run.info(tmp_path))
    deadline = time.monotonic() + 20
    # The file is there before its first line is.
    while not (record.exists() and "\n" in record.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    child = calls(record)[0][2]
    assert isinstance(child, int)
    assert os.getpgid(child) == child != os.getpgid(0)
    mirror.finish(Outcome(status=Status.interrupted, wall_seconds=1.0))
    mirror.close(20.0)
    assert calls(record)[-1] == ["finish", 1]


@pytest.mark.parametrize("mode", [WandbMode.online, WandbMode.offline])
def test_a_job_of_a_sweep_has_its_group_and_a_readable_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: WandbMode
) -> None:
    record = client(tmp_path, monkeypatch)
    config = WandbConfig(console=ConsoleMode.quiet, plot=False, mode=mode)
    tracker = build_tracker(config, run_dir=tmp_path / "run", redactor=Redactor())
    info = tracked_run.info(tmp_path / "run")
    tracker.start(replace(info, group="kl-1a2b", title="kl=none seed=0"))
    tracker.close(20.0)
    options = calls(record)[0][1]
    assert isinstance(options, dict)
    assert (options["group"], options["name"]) == ("kl-1a2b", "kl=none seed=0")
    assert options["mode"] == mode.value


def test_tensorboard_shows_completions(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    session = services.TensorboardSession({"run_dir": str(tmp_path)})
    session.table("completions", ["prompt", "reward"], [["a|b\n<c>", 1.0]], 4)
    session.finish(0)
    (file,) = (tmp_path / "tensorboard").iterdir()
    (event,) = [e for e in EventFileLoader(str(file)).Load() if e.HasField("summary")]
    (value,) = event.summary.value
    assert (event.step, value.tag) == (4, "completions")
    assert value.metadata.plugin_data.plugin_name == "text"
    (text,) = value.tensor.string_val
    assert text.decode().splitlines() == [
        "| prompt | reward |",
        "| --- | --- |",
        "| a&#124;b<br>&lt;c&gt; | 1.0 |",
    ]
