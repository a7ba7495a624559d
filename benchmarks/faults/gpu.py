"""The rows that need a CUDA device: memory, wrong adapters, logps, ends and a long run with vLLM.

python -m benchmarks.faults.gpu --model PATH --out results-gpu.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT)]

import psutil  # noqa: E402
import torch  # noqa: E402
from tiny_run import flat, tiny_run  # noqa: E402

from benchmarks.faults import engine_logps  # noqa: E402
from benchmarks.faults.engine_resume import resumed  # noqa: E402
from benchmarks.faults.engine_runs import log_of, start, wait_for_step  # noqa: E402
from benchmarks.faults.row import Row  # noqa: E402
from rlkit.algorithms.grpo import GRPOConfig  # noqa: E402
from rlkit.launch.environment import hardware, versions  # noqa: E402
from rlkit.tracking.files import read_lines  # noqa: E402
from rlkit.training.clock import StepClock  # noqa: E402
from rlkit.training.collate import collate  # noqa: E402
from rlkit.training.score import score  # noqa: E402
from rlkit.training.update import (  # noqa: E402
    UpdateSettings,
    accumulate,
    fit_in_memory,
)

_MOST_ERROR = 1e-6
_EXIT_S = 30.0
PARTS = ("memory", "lora", "qlora", "resume", "soak", "exits")
"""The parts that `--parts` takes; `memory` wants the device for itself."""
_AT_ONCE = 10
"""Runs that end on one device at a time."""


def out_of_memory(count: int, folder: Path) -> Row:
    """Leave too little memory for the whole batch `count` times; compare the gradients.

    Survived is a gradient within 1e-6 of the undisturbed one's norm.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    trainer, state, _ = tiny_run(folder, device=device, algorithm=GRPOConfig(group_size=1024))
    collection = trainer.collector.collect(0, policy_version=0, clock=StepClock(device))
    weights = trainer.collector.rewards.weights
    batch = collate(collection.groups, reward_weights=weights, pad_token_id=26, device=device)
    algorithm = trainer.algorithm(0)
    with torch.no_grad():
        prepared = algorithm.prepare(score(state.learner, batch, algorithm, trainer.settings))
    leaves = state.learner.named_parameters()

    def gradient(settings: UpdateSettings) -> torch.Tensor:
        state.optimizer.zero_grad(set_to_none=True)
        accumulate(state.learner, prepared, algorithm, settings)
        return flat({name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None})

    settings = trainer.settings._replace(tokens_per_microbatch=0)
    gradient(settings)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    expected = gradient(settings).clone()
    needed = torch.cuda.max_memory_reserved() - before
    divisors, survived, worst = [], 0, 0.0
    for number in range(count):
        state.microbatch_divisor = 1
        with _at_most(before + int(needed * (0.1 + 0.85 * number / count))):
            found = fit_in_memory(state, prepared.rollout, settings, gradient)
        error = float((found - expected).norm() / expected.norm())
        worst = max(worst, error)
        divisors.append(state.microbatch_divisor)
        survived += error <= _MOST_ERROR
    hit = sum(divisor > 1 for divisor in divisors)
    note = (
        f"{needed / 2**20:.0f} MiB needed; memory ran out in {hit} of {count}, divisors "
        f"{min(divisors)} to {max(divisors)}; largest distance {worst:.1e} of the gradient's norm"
    )
    return Row("F9 CUDA out of memory in an update", count, survived, count - survived, note)


@contextmanager
def _at_most(num_bytes: int) -> Iterator[None]:
    """Let this process have so much of the device and no more."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(num_bytes / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def exits(count: int, folder: Path, model: str, *, seconds: float = math.inf) -> Row:
    """Run `count` short runs with vLLM to their end; survived is one that then ends within 30 s.

    Several run at a time, on one device. None is started when `seconds` have passed.
    """
    last_start = time.monotonic() + seconds

    def made(number: int) -> list[tuple[float, str]]:
        if time.monotonic() > last_start:
            return []
        return [_exit_seconds(folder, f"exit_{number}", model)]

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        ends = [end for some in pool.map(made, range(count)) for end in some]
    count = len(ends)
    slowest, wrong = max(seconds for seconds, _ in ends), [w for _, w in ends if w]
    said = "; ".join(wrong[:2]) or "exit 0"
    note = f"{_AT_ONCE} at a time, slowest {slowest:.1f} s from the last step to the exit; {said}"
    return Row("F22 end of a run with vLLM", count, count - len(wrong), len(wrong), note)


def _exit_seconds(folder: Path, name: str, model: str) -> tuple[float, str]:
    process = start(folder, name, model, "steps=2")
    wait_for_step(folder, name, process, 2)
    begun = time.monotonic()
    code = process.wait(120)
    seconds = time.monotonic() - begun
    if code:
        return seconds, f"exit {code}: {log_of(folder, name).read_text(errors='replace')[-300:]}"
    return seconds, "" if seconds < _EXIT_S else f"took {seconds:.0f} s"


def soak(count: int, folder: Path, model: str) -> Row:
    """Train for `count` steps with vLLM; memory of host and device and open files must be flat."""
    process = start(
        folder, "soak", model, f"steps={count}", "evaluation.every=0", "optim.learning_rate=1e-6"
    )
    seen, looks = psutil.Process(process.pid), list[tuple[int, int, int]]()
    metrics = folder / "soak/metrics.jsonl"
    while process.poll() is None:
        time.sleep(0.5)
        try:
            family = [seen, *seen.children(recursive=True)]
            host = sum(one.memory_info().rss for one in family)
            files = sum(len(os.listdir(f"/proc/{one.pid}/fd")) for one in family)
            looks.append((metrics.read_bytes().count(b"\n"), host, files))
        except (psutil.Error, OSError):
            continue
    lines = read_lines(metrics)
    early = [x for x in looks if 0.1 * count <= x[0] <= 0.4 * count]
    late = [x for x in looks if x[0] >= 0.7 * count]
    device = [float(str(line.get("memory/cuda_peak_bytes", 0))) for line in lines]
    half = len(device) // 2
    kept = [
        process.returncode == 0 and len(lines) == count,
        bool(early and late) and _middle(late, 1) <= 1.05 * _middle(early, 1),
        bool(early and late) and _middle(late, 2) <= _middle(early, 2),
        max(device[half:], default=1.0) <= 1.02 * max(device[:half], default=0.0),
    ]
    note = (
        f"{len(lines)} steps, exit {process.returncode}; host {_middle(early, 1) / 2**20:.0f} MiB "
        f"early, {_middle(late, 1) / 2**20:.0f} MiB late; open files {_middle(early, 2)} and "
        f"{_middle(late, 2)}; device peak {max(device[:half], default=0) / 2**20:.0f} and "
        f"{max(device[half:], default=0) / 2**20:.0f} MiB"
    )
    name = f"Soak with vLLM, {count} steps"
    return Row(name, len(kept), sum(kept), len(kept) - sum(kept), note)


def _middle(looks: list[tuple[int, int, int]], column: int) -> int:
    values = sorted(look[column] for look in looks)
    return values[len(values) // 2] if values else 0


def main() -> int:
    """Run the rows and write them as JSON; the exit code is 1 when anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", required=True, help="a small model that vLLM runs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--exits", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="no exit is started after this time"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="these alone")
    options = parser.parse_args()
    rows: list[Row] = []

    def keep(row: Row) -> None:
        rows.append(row)
        print(row, flush=True)
        record = {
            "rows": [asdict(row) for row in rows],
            "command": " ".join(sys.argv),
            "versions": versions(),
            "hardware": hardware(),
        }
        options.out.write_text(json.dumps(record, indent=2) + "\n")

    with tempfile.TemporaryDirectory(prefix="faults-gpu-") as scratch:
        folder = Path(scratch)
        if "memory" in options.parts:  # alone, as it takes the device's memory away
            keep(out_of_memory(20, folder / "oom"))
        makers = {
            "resume": lambda: resumed(folder, options.model),
            "soak": lambda: soak(options.steps, folder, options.model),
            "exits": lambda: exits(options.exits, folder, options.model, seconds=options.seconds),
        }
        with ThreadPoolExecutor(len(makers)) as pool:
            others = [pool.submit(makers[part]) for part in makers if part in options.parts]
            for part in ("lora", "qlora"):
                if part in options.parts:
                    for row in engine_logps.rows(options.model, quantised=part == "qlora"):
                        keep(row)
            for other in as_completed(others):
                keep(other.result())
    return int(any(row.lost for row in rows))


if __name__ == "__main__":
    sys.exit(main())
