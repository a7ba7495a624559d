"""The main job over seeds: `python experiments/echo/analyse.py RUN... > results/NAME.json`.

Reads finished run folders and prints one JSON object: success before and after with the interval of
each run, seconds of the steps and of each phase, tokens a second.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rlkit.launch.environment import hardware, versions
from rlkit.tracking import read_evals, read_metrics
from rlkit.training.metrics import mean


def summarise(run: Path) -> dict[str, Any]:
    """What one run shows of itself."""
    lines = read_metrics(run)
    evaluations = {record.label: record for record in read_evals(run)}
    phases = ("generate", "reward", "score", "update", "sync", "other", "step")
    return {
        "run": run.name,
        "before": evaluations["before"].interval._asdict(),
        "after": evaluations["after"].interval._asdict(),
        "num_prompts": len(evaluations["after"].values),
        "samples_per_prompt": evaluations["after"].samples_per_prompt,
        "reward": [line["reward"] for line in lines],
        "kl": [line["kl"] for line in lines],
        "seconds": {p: sum(line[f"time/{p}"] for line in lines) for p in phases},
        "tokens_per_second": mean([line["speed/tokens_per_second"] for line in lines]),
    }


def main() -> None:
    """Print the summary of the runs named on the command line."""
    runs = [summarise(Path(argument)) for argument in sys.argv[1:]]
    report = {"versions": versions(), "hardware": hardware(), "runs": runs}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
