"""One side of a benchmark in a process of its own, its command line, and the report on all."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.ending import exit_with_parent
from benchmarks.random_model import SHAPES, write_random_model
from rlkit.launch.environment import hardware, versions

_MARK = "benchmarks.result "
_SHOWN = 3000
"""Characters of the log of a side that failed."""
Result = dict[str, Any]
"""The measurements of a side; or, as `error`, why it did not."""


class Side:
    """A child that imports what it needs, and waits for `finish` before it uses the device."""

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
    ) -> None:
        """Start `python -m module *arguments`; `log` gets its standard error."""
        self._name, self._log = name, log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=os.environ | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def finish(self, *, timeout_s: float) -> Result:
        """Let the child run, show what it says, and return what it handed over."""
        process, result = self._process, Result()
        assert process.stdin is not None and process.stdout is not None
        alarm = threading.Timer(timeout_s, process.kill)
        alarm.start()
        try:
            process.stdin.write("go\n")
            process.stdin.flush()
            for line in process.stdout:
                if line.startswith(_MARK):
                    result = json.loads(line.removeprefix(_MARK))
                else:
                    print(f"{self._name}: {line.rstrip()[:200]}", flush=True)
            process.wait()
        except BrokenPipeError:
            process.wait()
        finally:
            in_time = alarm.is_alive()
            alarm.cancel()
        return result or self._failed(in_time=in_time, timeout_s=timeout_s)

    def _failed(self, *, in_time: bool, timeout_s: float) -> Result:
        said = self._log.read_text()
        print(said[-_SHOWN:], flush=True)
        if not in_time:
            return {"error": f"no result within {timeout_s} s"}
        last = (said.strip().splitlines() or ["nothing was said"])[-1]
        return {"error": f"exit code {self._process.returncode}: {last}"}


def wait_for_turn() -> None:
    """In the child: return once `Side.finish` was called, and exit when the parent is gone."""
    sys.stdin.readline()
    exit_with_parent()


def hand_over(result: Mapping[str, object]) -> None:
    """In the child: what `Side.finish` returns."""
    print(_MARK + json.dumps(result), flush=True)


def memory_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder, in memory where there is such a file system."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def write_shape(folder: Path, shape: str) -> None:
    """Write a random model of a shape: in bfloat16 for a card, in float32 for a CPU."""
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    write_random_model(folder, shape, dtype=dtype)


def side_parser(
    module: str, sides: Iterable[str], *, default: str, counts: Mapping[str, int]
) -> argparse.ArgumentParser:
    """The command line of a benchmark of sides; `counts` become options with these defaults."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2.5-1.5b")
    parser.add_argument("--sides", default=default)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--timeout-s", type=float, default=300.0, help="of each side")
    for name, count in counts.items():
        parser.add_argument(_flag(name), type=int, default=count)
    parser.add_argument("--child", choices=sorted(sides), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser


def child_arguments(
    side: str, folder: Path, options: argparse.Namespace, names: Iterable[str]
) -> list[str]:
    """The command line of the child that is `side`; it gets the options `names` as they are."""
    passed_on = [f"{_flag(name)}={getattr(options, name)}" for name in names]
    return ["--child", side, "--folder", str(folder), *passed_on]


def table_head(title: str, names: Iterable[str]) -> list[str]:
    """The first two lines of a table in Markdown with one column a side."""
    columns = list(names)
    return [f"| {title} | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]


def failures(results: Mapping[str, Result]) -> list[str]:
    """A line for each side that failed."""
    return [f"{name}: {result['error']}" for name, result in results.items() if "error" in result]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def write_report(
    path: Path, module: str, work: Mapping[str, object], results: Mapping[str, Result]
) -> None:
    """The numbers as JSON, with the command, the versions and the hardware."""
    report = {
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
        "work": work,
        "versions": versions(),
        "hardware": hardware(),
        "results": results,
    }
    path.write_text(json.dumps(report, indent=1, default=str) + "\n")
