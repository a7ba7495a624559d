"""`import rlkit` is all a notebook needs: compose, train and read a run, without a command line."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

import rlkit

TABLE = (
    *("model=tabular", "steps=2", "seed=3"),
    *("tracker.completions=true", "tracker.metrics_every=1"),
)


def test_every_public_name_is_there_and_nothing_else() -> None:
    for name in rlkit.__all__:
        assert getattr(rlkit, name) is not None
    assert rlkit.functional.reverse_k3 is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = rlkit.trian


def test_reading_a_run_loads_no_model_library() -> None:
    heavy = ("vllm", "transformers", "wandb", "datasets", "matplotlib")
    code = f"import sys, rlkit; rlkit.load_run; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_a_run_is_composed_trained_and_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert rlkit.compose(*TABLE).steps == 2
    run = rlkit.train(*TABLE, f"run_dir={folder}")
    assert (run.run_dir, run.status.value, run.message) == (folder, "completed", "")
    assert [line["step"] for line in run.metrics] == [0, 1]
    assert all(math.isfinite(line["reward"]) for line in run.metrics)
    assert [record.label for record in run.evals] == ["before", "after"]
    again = rlkit.load_run(folder)
    assert again.metrics == run.metrics
    assert again.config["seed"] == 3
    assert len(again.samples(1)) == len(again.samples(0)) > 0


def test_bad_input_is_an_exception_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(rlkit.ConfigError, match=r"^steps must be >= 1, got 0$"):
        rlkit.train("model=tabular", "steps=0", f"run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
    with pytest.raises(rlkit.ConfigError, match="must be the folder of a run"):
        rlkit.load_run(tmp_path)
