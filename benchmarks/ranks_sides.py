"""The sides of `benchmarks.ranks`: processes on some of the machine's cards, with a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.side import Result
from benchmarks.step_sides import Work, result_of, rlkit_overrides
from rlkit.launch.devices import find_gpus

_SHOWN = 1500
"""Characters of the output of a side that failed."""
_MESSAGES = ("time/ranks", "time/ranks/wait")
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "HF_HUB_OFFLINE": "1",
    "NCCL_NVLS_ENABLE": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


class Scale(NamedTuple):
    """A side of the scaling table: how many cards share how much of the work."""

    cards: int
    times: int
    """The batch, as a multiple of the workload's."""
    program: str = "rlkit"


SIDES = {
    "one": Scale(1, 1),
    "two": Scale(2, 1),
    "one_twice": Scale(1, 2),
    "two_twice": Scale(2, 2),
    "trl_one": Scale(1, 1, "trl"),
    "trl_two": Scale(2, 1, "trl"),
    "trl_two_twice": Scale(2, 2, "trl"),
    "gradient": Scale(2, 1, "gradient"),
}


class Running:
    """A side that runs; `finish` waits for it and reads its result."""

    def __init__(self, name: str, work: Work, *, first_card: int) -> None:
        """Start the processes of the side `name` on as many cards as it has, from `first_card`."""
        self._scale = SIDES[name]
        self._work = work._replace(
            num_prompts=work.num_prompts * self._scale.times, run_name=f"run-{name}"
        )
        self._out = work.folder.parent / f"{name}.json"
        self._log = work.folder.parent / f"{name}.log"
        self._started = time.monotonic()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=os.environ | ENVIRONMENT | _visible(self._scale.cards, first_card),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, *, timeout_s: float) -> Result:
        """Return the side's numbers, or why there are none; nothing of it lives on."""
        try:
            code = self._process.wait(timeout=max(1.0, timeout_s))
            problem = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            problem = f"no result within {timeout_s:.0f} s"
        self.end()
        found: Result = {"wall_s": time.monotonic() - self._started}
        try:
            return found | self._result()
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            print(self._log.read_text()[-_SHOWN:], flush=True)
            return found | {"error": problem or f"{type(error).__name__}: {error}"}

    def end(self) -> None:
        """Kill what is left of the side's processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _result(self) -> Result:
        if self._scale.program != "rlkit":
            found: Result = json.loads(self._out.read_text())
            return found
        run_dir = self._run_dir
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        if len(lines) < self._work.total_steps:
            raise RuntimeError(f"{len(lines)} steps of {self._work.total_steps}")
        measured = lines[-self._work.steps :]
        messages = {name: [line.get(name, 0.0) for line in measured] for name in _MESSAGES}
        return dict(result_of(self._work, run_dir)) | {"messages": messages}

    @property
    def _run_dir(self) -> Path:
        return self._work.folder / self._work.run_name

    def _command(self) -> list[str]:
        cards, program = self._scale.cards, self._scale.program
        if program == "rlkit":
            overrides = rlkit_overrides(self._work, self._run_dir)
            return [sys.executable, "-m", "rlkit", *overrides, f"gpus={cards}"]
        work = self._work._replace(processes=cards)
        if program == "gradient":
            work = work._replace(overrides=(*work.overrides, f"gpus={cards}"))
        fields = work._asdict() | {"folder": str(work.folder)}
        arguments = ["--out", str(self._out), "--work", json.dumps(fields)]
        start = [sys.executable, "-m"]
        if program == "trl":
            if cards == 1:
                return [*start, "benchmarks.ranks_trl", *arguments]
            return [*start, *_accelerate(cards), "benchmarks.ranks_trl", *arguments]
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={cards}", "-m"]
        return [*start, *torchrun, "benchmarks.ranks_gradient", *arguments]


def _accelerate(processes: int) -> list[str]:
    """Return the module and the options of `accelerate launch`."""
    kind = [] if torch.cuda.is_available() else ["--cpu"]
    return [
        *("accelerate.commands.launch", "--multi_gpu" if not kind else "--cpu"),
        *(f"--num_processes={processes}", "--num_machines=1", "--mixed_precision=no"),
        *("--dynamo_backend=no", "-m"),
    ]


def _visible(count: int, first: int) -> dict[str, str]:
    cards = find_gpus(os.environ)[first : first + count]
    return {"CUDA_VISIBLE_DEVICES": ",".join(card.name for card in cards)} if cards else {}
