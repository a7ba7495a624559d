"""Each rank, and all weights, at its best learning rate.

`python experiments/lora_rank/best.py OUT SWEEP...` reads finished sweeps of
`experiment=lora_rank`, with ranks or with `model.tuning=full`; makes OUT a sweep folder of the jobs
at the best rates (by mean held-out success after training), for `rlkit report OUT`; draws
`OUT/rates.png` and writes its numbers to `OUT/rates.csv`.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from rlkit.stats import estimate
from rlkit.tracking import read_evals

FULL = "all weights"
STYLES = {  # colours of Okabe and Ito
    "1": ("#D55E00", "o"), "8": ("#E69F00", "s"), "16": ("#009E73", "^"),
    "64": ("#0072B2", "D"), FULL: ("#000000", "v"),
}  # fmt: skip
Jobs = dict[str, dict[float, list[dict[str, Any]]]]


def finished(sweeps: list[Path]) -> Jobs:
    """Jobs that are done, by rank and rate; the folder becomes an absolute path."""
    found: Jobs = defaultdict(lambda: defaultdict(list))
    for sweep in sweeps:
        for job in json.loads((sweep / "sweep.json").read_text())["jobs"]:
            folder = (sweep / job["folder"]).resolve()
            if (folder / "DONE").exists():
                options = dict(text.split("=", 1) for text in job["overrides"])
                full = options.get("model.tuning") == "full"
                rank = FULL if full else options["model.lora.rank"]
                rate = float(options["optim.learning_rate"])
                found[rank][rate].append({**job, "folder": folder})
    return found


def successes(jobs: list[dict[str, Any]]) -> list[float]:
    """Held-out success after training, a number a seed."""
    return [read_evals(job["folder"])[-1].interval.mean for job in jobs]


def main(out: Path, *sweeps: Path) -> None:
    """Write `out`."""
    found, best, rows = finished(list(sweeps)), [], []
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for rank in sorted(found, key=lambda name: (name == FULL, int(name) if name != FULL else 0)):
        rates = sorted(found[rank])
        values = [estimate(successes(found[rank][rate])) for rate in rates]
        top = max(range(len(rates)), key=lambda i: values[i].mean)
        best += found[rank][rates[top]]
        for rate, value in zip(rates, values, strict=True):
            rows.append([rank, rate, value.size, value.mean, value.low, value.high])
        colour, marker = STYLES.get(rank, ("#999999", "x"))
        label = rank if rank == FULL else f"rank {rank}"
        means = [value.mean for value in values]
        axis.plot(rates, means, color=colour, marker=marker, label=label)
        if all(value.low is not None for value in values):
            low, high = [v.low or 0.0 for v in values], [v.high or 0.0 for v in values]
            axis.fill_between(rates, low, high, color=colour, alpha=0.1, linewidth=0)
    axis.set(xscale="log", xlabel="learning rate", ylabel="held-out success after training")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    jobs = out / "jobs"
    jobs.mkdir(parents=True)
    for job in best:
        (jobs / job["id"]).symlink_to(os.path.relpath(job["folder"], jobs))
        job["folder"] = f"jobs/{job['id']}"
    contract = json.loads((sweeps[0] / "sweep.json").read_text())
    command = ["python", "experiments/lora_rank/best.py", str(out), *map(str, sweeps)]
    contract |= {"name": "lora_rank, best rates", "command": command, "jobs": best}
    (out / "sweep.json").write_text(json.dumps(contract, indent=1) + "\n")
    figure.savefig(out / "rates.png", dpi=110)
    with (out / "rates.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["rank", "learning_rate", "seeds", "success", "low", "high"])
        writer.writerows(rows)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
