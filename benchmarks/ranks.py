"""Runs on two cards beside runs on one: gradients, scaling, and TRL on the same cards.

    python -m benchmarks.ranks [--works W1,W4] [--sides gradient,one,two] [--out FILE]

Every side is a run of its own, as from the command line. Sides of one card that follow each other
in `--sides` run at the same time, each on its own card. `one` has the workload's batch on one card
and `two` the same batch on two; `one_twice` and `two_twice` have twice the prompts. `gradient`
compares the gradient of two cards with that of one on the same rollouts. The file is written after
each side, and no side starts that could not end in time. `--tiny` runs on a CPU with gloo.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.ending import exit_on_sigterm
from benchmarks.ranks_sides import SIDES, Running
from benchmarks.side import Result, failures, memory_folder, write_report, write_shape
from benchmarks.step_sides import Work, medians, write_prompts
from benchmarks.workloads import WORKLOADS

_MODULE = "benchmarks.ranks"
_PHASES = ("generate", "score", "update", "step")
_LEAST_S = 25.0
"""Seconds below which no further side is started."""


def main() -> int:
    """Measure the works and sides that the options name."""
    options = _arguments()
    end = time.monotonic() + options.deadline_s
    results: dict[str, Result] = {}
    for name in options.works.split(","):
        found = results.setdefault(name, {})
        with memory_folder() as root, ExitStack() as stack:
            work = _work(name, Path(root), options)
            write_shape(work.folder, WORKLOADS[name].shape)
            write_prompts(work._replace(num_prompts=2 * work.num_prompts))
            for names in _at_once(options.sides.split(",")):
                if time.monotonic() > end - _LEAST_S:
                    found |= {side: {"error": "no time was left"} for side in names}
                    continue
                started = {side: Running(side, work, first_card=n) for n, side in enumerate(names)}
                for running in started.values():
                    stack.callback(running.end)
                for side, running in started.items():
                    limit = min(options.timeout_s, end - time.monotonic())
                    found[side] = running.finish(timeout_s=limit)
                    print(f"{name} {side}: {_said(found[side])}", flush=True)
                if options.out:
                    works = {row: WORKLOADS[row]._asdict() for row in results}
                    write_report(options.out, _MODULE, works, results)
        print(table(name, found), flush=True)
    return 1 if any("error" in side for row in results.values() for side in row.values()) else 0


def _at_once(sides: list[str]) -> Iterator[list[str]]:
    """Yield the sides that run at the same time: two neighbours of one card each."""
    while sides:
        count = 2 if len(sides) > 1 and all(SIDES[s].cards == 1 for s in sides[:2]) else 1
        yield sides[:count]
        sides = sides[count:]


def table(name: str, sides: Mapping[str, Result]) -> str:
    """Return a line for each side, then the factors, in Markdown.

    Args:
        name: The workload.
        sides: The results, as `Running.finish` returns them.

    Returns:
        Seconds of each phase, milliseconds of messages, and factors of speed.
    """
    good = {side: medians(r) for side, r in sides.items() if "seconds" in r}
    heads = [name, *_PHASES, "messages, ms", "waiting, ms"]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for side, m in good.items():
        cells = [f"{m[phase]:.3f}" for phase in _PHASES]
        messages = sides[side].get("messages", {})
        cells += [f"{1000 * median(seconds):.1f}" for seconds in messages.values()]
        lines.append("| " + " | ".join([side, *cells]) + " |")
    lines += [f"{what}: x{factor:.2f}" for what, factor in factors(good).items()]
    if "gradient" in sides:
        lines.append(f"gradient: {sides['gradient']}")
    return "\n".join([*lines, *failures(sides)])


def factors(good: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return how much faster two cards are, from the median seconds of the sides that are there."""
    trained = {side: m["score"] + m["update"] for side, m in good.items()}
    steps = {side: m["step"] for side, m in good.items()}
    pairs = {
        "same batch, step": (steps, "one", "two", 1),
        "same batch, score + update": (trained, "one", "two", 1),
        "twice the batch against one card's own": (steps, "one", "two_twice", 2),
        "twice the batch against one card with it": (steps, "one_twice", "two_twice", 1),
        "twice the batch, score + update": (trained, "one_twice", "two_twice", 1),
        "against TRL on two cards": (steps, "trl_two", "two", 1),
        "against TRL on two cards, twice the batch": (steps, "trl_two_twice", "two_twice", 1),
    }
    return {
        what: times * found[before] / found[after]
        for what, (found, before, after, times) in pairs.items()
        if before in found and after in found
    }


def _said(result: Result) -> str:
    if "error" in result:
        return str(result["error"])
    return str(result if "seconds" not in result else medians(result))


def _work(name: str, root: Path, options: argparse.Namespace) -> Work:
    shape = WORKLOADS[name]
    return Work(
        folder=root / shape.shape,
        num_prompts=shape.prompts,
        num_samples=shape.samples,
        new_tokens=shape.new_tokens,
        warmup=options.warmup,
        steps=options.steps,
        trl_rows=min(8, shape.prompts * shape.samples // 2),
        overrides=(*(["memory=qlora"] if shape.four_bit else []), *options.set),
        four_bit=shape.four_bit,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parser.add_argument("--works", default="W1")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="measured, after the warm-up")
    parser.add_argument("--timeout-s", type=float, default=150.0, help="of each side")
    parser.add_argument("--deadline-s", type=float, default=290.0, help="of everything")
    parser.add_argument("--set", action="append", default=[], help="an option of rlkit")
    parser.add_argument("--tiny", action="store_true", help="a small shape: a test of this program")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.tiny:
        options.works, options.warmup, options.steps = "tiny", 1, 2
        options.set = [*options.set, "device=cpu", "model.dtype=fp32"]
    return options


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
