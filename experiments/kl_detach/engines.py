"""Does a policy that vLLM samples learn like one that transformers samples?

`python experiments/kl_detach/engines.py` reads `runs.csv` of `results/h200` (transformers) and of
`results/h200_vllm`: success of the three runs that learn, at beta 0.04, averaged by seed, paired.
"""

from __future__ import annotations

import csv
from pathlib import Path

from rlkit.stats import paired_estimate, paired_t, tost

RESULTS = Path(__file__).parent / "results"
RUNS = ("unsloth_2025", "unsloth_2025_full_reverse", "unsloth_2025_forward")
SEEDS = range(5)


def by_seed(folder: str, task: str) -> list[float]:
    """Mean success of `RUNS` for each seed."""
    with (RESULTS / folder / "runs.csv").open() as file:
        found = {
            (row["variant"].removeprefix("algorithm="), int(row["seed"])): float(row["success"])
            for row in csv.DictReader(file)
            if row["panel"] == f"task={task}, kl.beta=0.04"
        }
    return [sum(found[run, seed] for run in RUNS) / len(RUNS) for seed in SEEDS]


def main() -> None:
    """Print the comparison of each task."""
    for task in ("echo", "rev_words"):
        vllm, transformers = by_seed("h200_vllm", task), by_seed("h200", task)
        mean, low, high, _ = paired_estimate(vllm, transformers)
        differences = [a - b for a, b in zip(vllm, transformers, strict=True)]
        print(
            f"{task}: vLLM minus transformers {mean:+.3f} [{low:+.3f}, {high:+.3f}], "
            f"p {paired_t(differences):.2f}, p outside 0.02 {tost(differences, margin=0.02):.3f}, "
            f"outside 0.05 {tost(differences, margin=0.05):.3f}"
        )


if __name__ == "__main__":
    main()
