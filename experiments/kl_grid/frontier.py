"""Reward against KL, one panel for each number of passes: `python experiments/kl_grid/frontier.py`.

Reads `results/tabular/variants.csv` of `rlkit report`, draws `results/tabular/frontier.png`, with
the names at the points: sixteen entries of a legend cannot be told apart.
"""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results" / "tabular"
FAMILIES = {  # by gradient, with the colours of Okabe and Ito
    "reverse KL": (
        "#0072B2", "o",
        ("reverse_k2", "reverse_k3_corrected", "reverse_k3_straight", "reverse_exact",
         "reverse_exact_sequence", "reverse_k1_reward", "reverse_k1_advantage"),
    ),
    "forward KL": ("#D55E00", "s", ("reverse_k3", "forward_k1", "forward_k3", "forward_exact")),
    "no KL's": (
        "#009E73", "^",
        ("reverse_k1", "reverse_k2_reward", "reverse_k3_reward", "unsloth_full_reverse",
         "unsloth_forward"),
    ),
}  # fmt: skip


def main() -> None:
    """Draw the figure."""
    with (RESULTS / "variants.csv").open() as file:
        rows = list(csv.DictReader(file))
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for panel, passes in zip(panels, ("1", "4"), strict=True):
        for family, (colour, marker, names) in FAMILIES.items():
            for name in names:
                found = [
                    (float(row["kl"]), float(row["after"]))
                    for row in rows
                    if row["variant"] == f"kl={name}"
                    and f"optim.inner_epochs={passes}" in row["panel"].split(", ")
                ]
                x, y = zip(*sorted(found), strict=True)
                label = family if name == names[0] else None
                panel.plot(x, y, color=colour, marker=marker, linewidth=0.8, label=label)
                panel.annotate(name, (x[0], y[0]), fontsize=6, xytext=(4, -7),
                               textcoords="offset points", color=colour)  # fmt: skip
        panel.set_title("on-policy" if passes == "1" else f"{passes} passes")
        panel.set_xlabel("KL(policy ‖ reference), nats a completion")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("expected reward (exact)")
    panels[0].legend(title="expected gradient of", frameon=False, loc="lower right")
    figure.savefig(RESULTS / "frontier.png", dpi=150)


if __name__ == "__main__":
    main()
