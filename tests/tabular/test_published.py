"""A run of today agrees with the numbers published in `experiments/kl_detach`."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from rlkit.launch.composing import register
from rlkit.launch.job import run_job
from rlkit.launch.preflight import preflight
from rlkit.tracking import read_evals

TABLE = Path(__file__).parents[2] / "experiments/kl_detach/results/tabular/variants.csv"


def published(preset: str, beta: str) -> tuple[float, float]:
    """Mean expected reward and KL over twenty seeds."""
    with TABLE.open() as file:
        rows = list(csv.DictReader(file))
    wanted = (f"kl.beta={beta}", f"algorithm={preset}")
    (row,) = [row for row in rows if (row["panel"], row["variant"]) == wanted]
    return float(row["after"]), float(row["kl"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "beta"),
    [
        ("unsloth_2025", "0.4"),
        ("unsloth_2025_full_reverse", "0.4"),
        ("unsloth_2025_probability", "0.4"),
        ("unsloth_2025_no_detach", "0.4"),
    ],
)
def test_one_seed_agrees_with_the_published_mean(
    preset: str, beta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within .02 of expected reward and .15 nats, four standard deviations of a seed and more."""
    register()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    options = ["experiment=kl_detach_tabular", f"algorithm={preset}", f"kl.beta={beta}"]
    (config,) = preflight([*options, "evaluation.every=0", "run_dir=run"])
    assert run_job(config, run_dir=tmp_path / "run") == 0
    after = read_evals(tmp_path / "run")[-1]
    reward, kl = published(preset, beta)
    assert after.interval.mean == pytest.approx(reward, abs=0.02)
    assert after.metrics["kl"] == pytest.approx(kl, abs=0.15)
    if preset.endswith("no_detach"):
        assert after.metrics["kl"] == kl == 0.0
