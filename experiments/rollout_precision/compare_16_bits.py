"""A comparison of what `in_16_bits.py` wrote.

`python experiments/rollout_precision/compare_16_bits.py FILE.json` writes FILE.csv, each arm
against the policies that learnt from 16-bit rollouts and the 4-bit ones also against 4 bits without
a correction (paired by seed, Holm within each), and FILE.png, every policy's reward over its KL.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from rlkit.stats import Paired, compare_all, estimate

MARGIN = 0.02
STYLES = (("#000000", "o"), ("#D55E00", "s"), ("#0072B2", "^"), ("#009E73", "D"))  # Okabe, Ito
Arms = dict[str, dict[int, dict[str, float]]]


def arms_of(rows: list[dict[str, str]]) -> Arms:
    """Reward, KL and length by arm and seed."""
    arms: Arms = defaultdict(dict)
    for row in rows:
        if row["sweep"]:
            bits = "16 bit" if row["generator.quantization"] == "none" else "4 bit"
            numbers = {key: float(row[key]) for key in ("reward", "kl", "length")}
            arms[f"{bits}, {row['correction']}"][int(row["seed"])] = numbers
    return arms


def table(arms: Arms) -> list[dict[str, object]]:
    """A row for each comparison; the baselines come first, without one."""
    found: list[dict[str, object]] = []
    for name, seeds in arms.items():
        reward, kl = (estimate([s[key] for s in seeds.values()]) for key in ("reward", "kl"))
        found.append({
            "arm": name, "seeds": reward.size, "reward": reward.mean, "low": reward.low,
            "high": reward.high, "kl": kl.mean, "kl_low": kl.low, "kl_high": kl.high,
            "length": estimate([s["length"] for s in seeds.values()]).mean,
        })  # fmt: skip
    for base in ("16 bit, none", "4 bit, none"):
        pairs = {
            name: Paired(
                [arms[name][seed]["reward"] for seed in sorted(arms[name])],
                [arms[base][seed]["reward"] for seed in sorted(arms[name])],
            )
            for name in arms
            if name != base and name.startswith("4 bit")
        }
        for name, c in compare_all(pairs, margin=MARGIN).items():
            found.append({
                "arm": name, "against": base, "seeds": c.difference.size,
                "difference": c.difference.mean, "difference_low": c.difference.low,
                "difference_high": c.difference.high, "p_different": c.p_different,
                "p_outside_margin": c.p_outside, "verdict": c.verdict.value, "margin": MARGIN,
            })  # fmt: skip
    return found


def main(path: Path) -> None:
    """Write the table and the figure."""
    rows = json.loads(path.read_text())
    arms = arms_of(rows)
    found = table(arms)
    with path.with_suffix(".csv").open("w", newline="") as file:
        keys = list(dict.fromkeys(key for row in found for key in row))
        writer = csv.DictWriter(file, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    axis.axhline(rows[0]["reward"], color="#999999", linewidth=0.8, label="before training")
    for (name, seeds), (colour, marker) in zip(arms.items(), STYLES, strict=True):
        x, y = [s["kl"] for s in seeds.values()], [s["reward"] for s in seeds.values()]
        axis.scatter(x, y, color=colour, marker=marker, label=name)
    axis.set(
        xlabel="KL(policy ‖ reference), nats a completion",
        ylabel="held-out reward, sampled in bf16",
    )
    axis.grid(alpha=0.3)
    axis.legend(title="rollouts, correction", frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
