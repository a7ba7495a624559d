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
    if file.stem != "sft"  # it samples nothing: tests/e2e/test_sft.py
]


# The KL estimate of a token is exp(d) - 1 - d = d^2 / 2 + ..., where d is the difference of two
# float32 logps of the same weights. Each logp comes from a sum of at most 128 products and the
# logarithm of a sum, all of size 16 or less. In whatever order they are summed, d is less than
# 1e-5, which is 84 units in the last place of 1. The metric is the mean over tokens.
ROUNDING = 1e-5**2 / 2

# Their policy gradient is 0. Their KL term is stationary at the reference.
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
        # The first policy is the reference, but a CPU may sum its logits in another order.
        assert 0.0 <= first["kl"] <= ROUNDING
        assert second["kl"] > 100 * ROUNDING
