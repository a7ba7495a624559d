"""Every algorithm preset and every KL option trains through the real command line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rlkit import cli
from rlkit.tracking import read_metrics

CONF = Path(__file__).parent.parent.parent / "conf"
OPTIONS = [
    f"{group}={file.stem}"
    for group in ("algorithm", "kl")
    for file in sorted((CONF / group).glob("*.yaml"))
]


# Their policy gradient is 0 and their KL term stationary at the reference, as the seed's was.
DEAD = [
    f"algorithm=unsloth_2025_{name}" for name in ("full_no_detach", "log_weighted", "no_detach")
]


@pytest.mark.parametrize("option", OPTIONS)
def test_it_trains(
    option: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["rlkit"])
    run = tmp_path / "run"
    # A learning rate at which the second step's policy is no longer the reference.
    overrides = [option, "steps=2", "optim.learning_rate=0.01", "tracker.plot=false"]
    overrides += ["algorithm.group_size=4", "evaluation.num_prompts=1", "checkpoint.every=9"]
    assert cli.run([*small, *overrides, f"run_dir={run}"]) == 0
    first, second = read_metrics(run)
    if option in DEAD:
        assert [line[name] for line in (first, second) for name in ("grad_norm", "kl")] == [0.0] * 4
        return
    assert first["grad_norm"] > 0.0
    assert second["skipped_updates"] == 0.0
    for name in ("loss", "grad_norm", "reward", "entropy"):
        assert math.isfinite(second[name]), name
    if "kl" in first:
        assert first["kl"] == 0.0
        assert second["kl"] > 0.0
