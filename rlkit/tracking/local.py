"""The run folder is the one complete record of a run, written before anything is mirrored."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from rlkit.runtime.redact import Redactor
from rlkit.tracking.base import (
    EvalRecord,
    Level,
    Measure,
    Outcome,
    Phase,
    RunInfo,
    SampleRow,
    Status,
    StepRecord,
    TrackingError,
)
from rlkit.tracking.completions import eval_path, step_path, write_samples
from rlkit.tracking.files import JsonLines, encode, naming, number, write_atomic
from rlkit.tracking.runlog import LEVELS, MESSAGES, RunLog
from rlkit.tracking.salvage import whole_evals, whole_metrics

_LOG = logging.getLogger(__name__)
_SAMPLES = re.compile(r"(?P<kind>step|eval)-(?:(?P<label>.+)-)?(?P<step>\d+)\.parquet")


class LocalTracker:
    """This tracker writes the files of the run folder.

    They are `run.json`, `metrics.jsonl`, `evals.jsonl`, `completions/`, `log.txt` and the curves.

    Metrics and evaluations must get through: a failure raises TrackingError.
    Completions, log and curves are worth less than the run: a failure is logged once.
    """

    def __init__(
        self,
        run_dir: Path,
        redactor: Redactor,
        *,
        completions: bool,
        plot: bool,
        metrics_every: int = 1,
    ) -> None:
        """Make the folder and open its log.

        Raises:
            TrackingError: the folder or the log cannot be written.
        """
        try:
            (run_dir / "completions").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrackingError(f"cannot make {run_dir}: {error.strerror}") from error
        self._run_dir = run_dir
        self._redactor = redactor
        self._keep_completions = completions
        self._plot = plot
        self._metrics_every = metrics_every
        self._log = RunLog(run_dir / "log.txt", redactor)
        self._info: RunInfo | None = None
        self._metrics: JsonLines | None = None
        self._evals: list[dict[str, object]] = []
        self._lost_completions = 0

    def start(self, info: RunInfo) -> None:
        first = info.first_step
        self._info = info
        lines = {int(number(x["step"])): x for x in whole_metrics(self._run_dir).lines}
        extra = self._end_of_a_shorter_run(info, lines)
        kept = [line for step, line in lines.items() if step < first and step not in extra]
        self._metrics = JsonLines(self._run_dir / "metrics.jsonl", kept=kept)
        self._keep_evals(info)
        self._drop_samples(info, extra)
        resumed = f", resumed at step {first}" if first else ""
        write_atomic(
            self._run_dir / "run.json", (encode(_about(info, self._redactor)) + "\n").encode()
        )
        MESSAGES.info("run %s: %s on %s%s", info.name, info.algorithm, info.task, resumed)
        MESSAGES.info("config %s", json.dumps(self._redactor.config(info.config), default=str))
        MESSAGES.info("versions %s", json.dumps(dict(info.versions)))
        for warning in info.warnings:
            MESSAGES.warning("%s", warning)

    def progress(self, phase: Phase, done: int, total: int) -> None:
        """Do nothing, for progress is not kept."""

    def step(self, record: StepRecord) -> None:
        assert self._metrics is not None and self._info is not None, "step before start"
        is_last = record.step == self._info.num_steps - 1
        if record.step % self._metrics_every and not is_last:
            return
        line = {**record.metrics, "step": record.step, "time/unix": time.time()}
        self._write_samples(step_path(self._run_dir, record.step), record.samples)
        self._metrics.append(line)

    def evaluation(self, record: EvalRecord) -> None:
        path = eval_path(self._run_dir, record.label, record.step)
        self._write_samples(path, record.samples)
        line = _eval_line(record)
        same = (line["label"], line["step"])
        self._evals = [old for old in self._evals if (old["label"], old["step"]) != same]
        self._evals.append(line)
        self._write_evals()
        what, interval = record.measure.value, record.interval
        MESSAGES.info("evaluation %s: %s %.3f [%.3f, %.3f]", record.label, what, *interval)

    def message(self, level: Level, text: str) -> None:
        MESSAGES.log(LEVELS[level], "%s", text)

    def finish(self, outcome: Outcome) -> None:
        level = logging.ERROR if outcome.status is Status.failed else logging.INFO
        text = f"{outcome.status} after {outcome.wall_seconds:.1f} s. {outcome.message}"
        MESSAGES.log(level, "%s", text.strip())
        if self._plot and self._info is not None:
            self._draw(self._info)

    def close(self, deadline_s: float) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        self._log.close()

    def _end_of_a_shorter_run(self, info: RunInfo, recorded: Collection[int]) -> set[int]:
        """Return the step that is on record only because a run ended with it, which now goes on.

        A run of that many steps from the start has no line of it. Where other steps are on record
        that are not due, more of them were kept before, and all stay.
        """
        last, every = info.first_step - 1, self._metrics_every
        finer = any(step % every for step in recorded if step < last)
        return {last} if last % every and not finer and last < info.num_steps - 1 else set()

    def _drop_samples(self, info: RunInfo, extra: Collection[int]) -> None:
        """Delete the samples of steps and evaluations that come again, and of steps in `extra`."""
        first = info.first_step
        for path in (self._run_dir / "completions").glob("*.parquet"):
            match = _SAMPLES.fullmatch(path.name)
            if match is None:
                continue
            kind, label, step = match["kind"], match["label"], int(match["step"])
            was_last = label == "after" and step < info.num_steps
            is_extra = kind == "step" and step in extra
            if was_last or is_extra or step >= (first if kind == "step" else first + 1):
                with naming(path):
                    path.unlink()

    def _keep_evals(self, info: RunInfo) -> None:
        """Keep the evaluations up to here; what was the last one of a shorter run is no longer."""
        kept: dict[tuple[object, object], dict[str, object]] = {}
        for line in whole_evals(self._run_dir).lines:
            step = int(number(line["step"]))
            if step > info.first_step:
                continue
            if line["label"] == "after" and step < info.num_steps:
                old = eval_path(self._run_dir, "after", step)
                line = {**line, "label": f"step {step}"}
                if old.exists():
                    with naming(old):
                        old.replace(eval_path(self._run_dir, f"step {step}", step))
            kept[line["label"], step] = line
        self._evals = list(kept.values())
        self._write_evals()

    def _draw(self, info: RunInfo) -> None:
        from rlkit.tracking.plot import draw_curves

        try:
            title = f"{info.name}: {info.algorithm} on {info.task}, {info.model}"
            draw_curves(self._run_dir, info.reward_names, title=title)
        except Exception:  # a picture is not worth a run
            _LOG.warning("the curves were not drawn", exc_info=True)

    def _write_samples(self, path: Path, rows: Sequence[SampleRow]) -> None:
        assert self._info is not None, "samples before start"
        if not self._keep_completions or not rows:
            return
        try:
            write_samples(path, rows, self._info.reward_names)
        except TrackingError as error:
            self._lost_completions += 1
            if self._lost_completions == 1:
                _LOG.warning("completions are not kept from here on where this fails: %s", error)

    def _write_evals(self) -> None:
        path = self._run_dir / "evals.jsonl"
        if self._evals or path.exists():
            write_atomic(path, "".join(encode(line) + "\n" for line in self._evals).encode())


def _about(info: RunInfo, redactor: Redactor) -> dict[str, object]:
    """Return the facts that a report needs besides the configuration."""
    return {
        "name": info.name,
        "task": info.task,
        "model": redactor.text(info.model),
        "algorithm": info.algorithm,
        "device": info.device,
        "dtype": info.dtype,
        "num_steps": info.num_steps,
        "command": redactor.text(info.command),
        "hardware": info.hardware,
        "versions": info.versions,
    }


def _eval_line(record: EvalRecord) -> dict[str, object]:
    return {
        **record.metrics,
        "label": record.label,
        "step": record.step,
        "mean": record.interval.mean,
        "low": record.interval.low,
        "high": record.interval.high,
        "samples_per_prompt": record.samples_per_prompt,
        "prompt_indices": list(record.prompt_indices),
        "prompt_keys": list(record.prompt_keys),
        "measure": record.measure.value,
        "success" if record.measure is Measure.success else "values": list(record.values),
        "time/unix": time.time(),
    }
