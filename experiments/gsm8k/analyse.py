"""Put the arms of GSM8K side by side: python -m experiments.gsm8k.analyse WORK OUT.

OUT has `policies-*.json` of `evaluate`; WORK has the runs. OUT/summary.json has the accuracy of
each arm over its seeds, and the paired change against the warm start. Seeds and questions are both
resampled.
OUT/curves.json has the reward, the length and the seconds of every step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WARM = "warm"
_RESAMPLES = 4_000


def change(seeds: Sequence[Sequence[float]], warm: Sequence[float]) -> dict[str, float]:
    """Return the mean change over seeds and questions, with a 95% interval.

    Args:
        seeds: The share of right samples, a list of all questions for each seed.
        warm: The same of the warm start.

    Returns:
        `mean`, `low` and `high`: seeds and questions are resampled with replacement, together.
    """
    gain = np.asarray(seeds, dtype=np.float64) - np.asarray(warm, dtype=np.float64)
    rng = np.random.default_rng(0)
    means = []
    for _ in range(_RESAMPLES):
        rows = gain[rng.integers(len(gain), size=len(gain))].mean(axis=0)
        means.append(rows[rng.integers(len(rows), size=len(rows))].mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(gain.mean()), "low": float(low), "high": float(high)}


def arm_of(name: str) -> str:
    """Return the arm of a policy: `ppo-3` is of `ppo`, `trl-0-seconds` of `trl-seconds`."""
    return "-".join(part for part in name.split("-") if not part.isdigit())


def summary(policies: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of each arm, greedy and sampled."""
    arms: dict[str, list[str]] = {}
    for name in sorted(policies):
        arms.setdefault(arm_of(name), []).append(name)
    found: dict[str, Any] = {}
    for arm, names in arms.items():
        for kind in ("greedy", "sampled"):
            each = [policies[name][kind] for name in names]
            row: dict[str, Any] = {
                key: float(np.mean([e[key] for e in each]))
                for key in ("mean", "derived", "guess", "equations_right", "length", "cut")
            }
            row["seeds"] = [e["mean"] for e in each]
            if arm == WARM:
                row["low"], row["high"] = each[0]["low"], each[0]["high"]
            elif WARM in policies:
                row["change"] = change([e["share"] for e in each], policies[WARM][kind]["share"])
            found.setdefault(arm, {})[kind] = row
    return found


def curves(work: Path) -> dict[str, list[dict[str, float]]]:
    """Return reward, length, entropy and seconds of every step of every run."""
    kept = {
        "reward": "reward",
        "completions/mean_length": "length",
        "entropy": "entropy",
        "time/step": "step_seconds",
        "seconds": "seconds",
    }
    return {
        file.parent.name: [
            {new: row[old] for old, new in kept.items() if old in row}
            for row in map(json.loads, file.read_text().splitlines())
        ]
        for file in sorted(work.glob("*/metrics.jsonl"))
    }


def table(arms: dict[str, Any]) -> str:
    """Return the summary as a table."""
    titles = ("arm", "greedy", "change", "temperature 1", "change", "calculated", "guess", "tokens")
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for arm, row in arms.items():
        cells = [arm]
        for kind in ("greedy", "sampled"):
            moved = row[kind].get("change")
            cells.append(f"{row[kind]['mean']:.4f}")
            cells.append("{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**moved) if moved else "")
        s = row["sampled"]
        cells += [f"{s['derived']:.4f}", f"{s['guess']:.4f}", f"{s['length']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(work: Path, out: Path) -> None:
    """Write both files and print the table."""
    policies: dict[str, Any] = {}
    for file in sorted(out.glob("policies-*.json")):
        policies |= json.loads(file.read_text())
    if not policies:
        raise SystemExit(f"{out} must hold policies-*.json, got none: {work}/*.log say why")
    arms = summary(policies)
    (out / "summary.json").write_text(json.dumps(arms, indent=1) + "\n")
    (out / "curves.json").write_text(json.dumps(curves(work)) + "\n")
    print(table(arms))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
