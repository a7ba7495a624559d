"""A data or reward file that changed between start and resume is refused, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_process import RunCLI

REWARD = "def length(group):\n    return [float(len(c.text) % {}) for c in group]\n"


@pytest.fixture
def own(small: list[str], tmp_path: Path) -> list[str]:
    """Overrides of a run on a file and a reward of the user's own."""
    write_rows(tmp_path, "Say")
    (tmp_path / "own.py").write_text(REWARD.format(3))
    dropped = ("task=", "+reward", "steps=", "evaluation.num")
    return [
        *(override for override in small if not override.startswith(dropped)),
        *("task=dataset", "task.path=rows.jsonl", "+task.columns.prompt=q"),
        *("task.eval_fraction=0.5", "task.max_completion_length=8", "evaluation.num_prompts=2"),
        "+reward.functions.length.fn=own:length",
    ]


def write_rows(folder: Path, word: str) -> None:
    rows = [json.dumps({"q": f"{word} {i}."}) for i in range(8)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("changed", ["rows.jsonl", "own.py"])
def test_a_changed_file_is_refused_on_resume_unless_accepted(
    rlkit: RunCLI, own: list[str], tmp_path: Path, changed: str
) -> None:
    assert rlkit(*own, "run_dir=run", "steps=1").returncode == 0
    go_on = [*own, "run_dir=run", "steps=2", "resume=auto"]
    if changed == "own.py":
        (tmp_path / "own.py").write_text(REWARD.format(5))
    else:
        write_rows(tmp_path, "Tell")
    refused = rlkit(*go_on)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    key = {"rows.jsonl": "task.path", "own.py": "reward.functions.length.fn"}[changed]
    assert f"rlkit: {key} must hold what it held when the run in run began" in refused.stderr
    assert changed in refused.stderr and "accept_changed_files=true" in refused.stderr
    assert "memory plan" not in refused.stdout, "nothing may have been loaded"
    accepted = rlkit(*go_on, "accept_changed_files=true")
    assert accepted.returncode == 0, accepted.stderr
    assert f"accepted: {key} must hold" in accepted.stdout
    assert rlkit(*go_on[:-2], "steps=3", "resume=auto").returncode == 0, "accepted once, for good"


def test_a_sweep_does_not_call_jobs_done_whose_data_changed(
    rlkit: RunCLI, own: list[str], tmp_path: Path
) -> None:
    sweep = ["-m", *own, "steps=1", "seed=0,1", "hydra.sweep.dir=sweep"]
    assert rlkit(*sweep).returncode == 0
    assert "2 done before" in rlkit(*sweep).stdout
    write_rows(tmp_path, "Tell")
    again = rlkit(*sweep)
    assert again.returncode == 2 and again.stderr.count("\n") == 1
    assert "sweep not started; job [seed=0]: task.path must hold what it held" in again.stderr
    assert "2 done before" in rlkit(*sweep, "accept_changed_files=true").stdout


def test_an_untouched_run_of_an_older_version_resumes(
    rlkit: RunCLI, own: list[str], tmp_path: Path
) -> None:
    assert rlkit(*own, "run_dir=run", "steps=1").returncode == 0
    (tmp_path / "run/content.json").unlink()
    assert rlkit(*own, "run_dir=run", "steps=2", "resume=auto").returncode == 0
    record = json.loads((tmp_path / "run/content.json").read_text())
    model = ("model.source", "model.source (weights)")
    assert set(record["files"]) == {*("task.path", "reward.functions.length.fn"), *model}
