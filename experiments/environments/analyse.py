"""The demos over seeds: `python experiments/environments/analyse.py RUN... > results/NAME.json`.

Reads finished run folders named TASK-SEED. The JSON object has success before and after with the
interval of each run, turns, rewards and seconds. The table goes to the standard error; with
`--table FILE.json ...` it is printed from such objects.
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from rlkit.launch.environment import hardware, versions
from rlkit.tracking import read_evals, read_metrics
from rlkit.training.metrics import mean


def summarise(run: Path) -> dict[str, Any]:
    """Return what one run shows of itself."""
    lines = read_metrics(run)
    evaluations = {record.label: record for record in read_evals(run)}
    phases = ("generate", "score", "update", "step")
    return {
        "run": run.name,
        "steps": len(lines),
        "before": evaluations["before"].interval._asdict(),
        "after": evaluations["after"].interval._asdict(),
        "num_prompts": len(evaluations["after"].values),
        "samples_per_prompt": evaluations["after"].samples_per_prompt,
        "turns": {x: evaluations[x].metrics["episodes/turns"] for x in ("before", "after")},
        "reward": [round(line["reward"], 4) for line in lines],
        "seconds": {p: sum(line[f"time/{p}"] for line in lines) for p in phases},
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Return one row a task: success of each seed, and means, before and after."""
    lines = [
        "| task | steps | before, by seed | after, by seed | means | turns | seconds of steps |"
    ]
    lines.append("| --- " * 7 + "|")

    def key(run: dict[str, Any]) -> str:
        return str(run["run"]).rpartition("-")[0]

    for name, group in groupby(sorted(runs, key=lambda run: str(run["run"])), key=key):
        of_task = list(group)
        ends = {e: [run[e]["mean"] for run in of_task] for e in ("before", "after")}
        turns = {e: mean([run["turns"][e] for run in of_task]) for e in ("before", "after")}
        seconds = mean([run["seconds"]["step"] for run in of_task])
        cells = [
            f"`{name}`",
            str(of_task[0]["steps"]),
            *(", ".join(f"{value:.3f}" for value in ends[e]) for e in ("before", "after")),
            f"{mean(ends['before']):.3f} → **{mean(ends['after']):.3f}**",
            f"{turns['before']:.2f} → {turns['after']:.2f}",
            f"{seconds:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the summary of the runs named on the command line."""
    if sys.argv[1:2] == ["--table"]:
        print(
            table(
                [run for file in sys.argv[2:] for run in json.loads(Path(file).read_text())["runs"]]
            )
        )
        return
    done, failed = [], []
    for run in map(Path, sys.argv[1:]):
        try:
            done.append(summarise(run))
        except (KeyError, OSError, ValueError) as error:
            failed.append(f"{run.name}: {type(error).__name__}: {error}")
    report = {"versions": versions(), "hardware": hardware(), "runs": done, "unfinished": failed}
    print(json.dumps(report, indent=1))
    print("\n".join([table(done), *failed]), file=sys.stderr)


if __name__ == "__main__":
    main()
