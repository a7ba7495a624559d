"""Run folders of an older version go on bit for bit, are reported and are compared.

`tests/data/old_runs/README.md` says how they were made.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cli_process import command, environment

OLD = Path(__file__).parent.parent / "data" / "old_runs"
EVERY = ("checkpoint.every=2", "tracker.metrics_every=1")
OPTIONS = ("model=tabular", "tracker.completions=true", *EVERY)
LORA = (
    *("model.source=model", "model.lora.rank=2", "task=max_of_n", "task.max_completion_length=8"),
    *("prompts_per_step=2", "algorithm.group_size=4", "evaluation.num_prompts=4"),
    *("evaluation.samples_per_prompt=1", "memory.torch_threads=1", "reward.workers=1"),
    *("tracker.plot=false", "tracker.report=false", "tracker.console=quiet", "device=cpu"),
    *("+reward.functions.letters.fn=letters.py:letters", *EVERY),
)
# Of what a run measures, these belong to the machine and the moment.
MEASURED = ("time/", "speed/", "memory/")
# Every CPU takes the same instructions, those that all have, and so gets the same last bits.
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}


def rlkit(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        command(*arguments),
        cwd=cwd,
        env={**environment(), **PORTABLE, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the old runs, of which today's command line has taken the short ones to step 8."""
    folder = tmp_path_factory.mktemp("old") / "runs"
    shutil.copytree(OLD, folder)
    for kind, options in (("tabular", OPTIONS), ("lora", LORA)):
        rlkit(*options, "steps=8", f"run_dir={kind}_4", "resume=must", cwd=folder)
    return folder


def lines(file: Path) -> list[dict[str, object]]:
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return [
        {key: value for key, value in record.items() if not key.startswith(MEASURED)}
        for record in records
    ]


@pytest.mark.parametrize("kind", ["tabular", "lora"])
def test_the_old_run_had_four_steps_left(kind: str) -> None:
    assert [line["step"] for line in lines(OLD / f"{kind}_4" / "metrics.jsonl")] == [0, 1, 2, 3]
    (checkpoint,) = (OLD / f"{kind}_4" / "checkpoints").iterdir()
    assert checkpoint.name == "step-000004"


@pytest.mark.parametrize("kind", ["tabular", "lora"])
def test_it_goes_on_as_the_old_code_would_have(folder: Path, kind: str) -> None:
    found = lines(folder / f"{kind}_4" / "metrics.jsonl")
    assert [line["step"] for line in found] == list(range(8))
    assert found == lines(OLD / f"{kind}_8" / "metrics.jsonl")


def test_its_last_evaluation_is_that_of_the_old_code(folder: Path) -> None:
    new = lines(folder / "tabular_4" / "evals.jsonl")[-1]
    old = lines(OLD / "tabular_8" / "evals.jsonl")[-1]
    assert (new["label"], new["step"]) == ("after", 8)
    # A table's expectations are rewards, and so are no longer called successes.
    old["values"] = old.pop("success")
    assert {key: new[key] for key in old} == old


@pytest.mark.parametrize("run", ["tabular_4", "tabular_8"])
def test_it_is_reported(folder: Path, run: str) -> None:
    said = rlkit("report", run, cwd=folder)
    assert "Expected reward 0.202 → 0.295 in 8 steps" in said
    assert "0.295" in (folder / run / "report.html").read_text()


def test_it_is_compared(folder: Path) -> None:
    said = rlkit("compare", "tabular_8", "tabular_4", cwd=folder)
    (row,) = (line for line in said.splitlines() if "too few seeds" in line)
    assert [cell.strip() for cell in row.split("│")[1:6]] == [
        *("tabular_4", "1/1", "0.202", "0.295", "+0.000")
    ]
    # The old code did what today's defaults ask for, by whatever names.
    assert "options that differ" not in said and "model.adapter" not in said


def test_old_and_new_seeds_are_one_variant(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "tabular_8", tmp_path / "both" / "old")
    rlkit(*OPTIONS, "steps=8", "seed=1", "run_dir=both/new", cwd=tmp_path)
    said = rlkit("compare", "both", cwd=tmp_path)
    rows = [line for line in said.splitlines() if line.startswith("│")]
    assert len(rows) == 1 and rows[0].split("│")[2].strip() == "2/2", said
