"""The command line as a user meets it, in processes of its own."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from cli_process import RunCLI, from_the_start
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from warm_cli import Forks

from rlkit import cli
from rlkit.tracking import comparable, read_metrics


def metrics(run: Path) -> list[dict[str, object]]:
    return [comparable(line) for line in read_metrics(run)]


def same_adapter(a: Path, b: Path) -> bool:
    one, other = (load_file(run / "adapter/adapter_model.safetensors") for run in (a, b))
    return one.keys() == other.keys() and all((one[k] == other[k]).all() for k in one)


def test_a_run_leaves_everything_behind(
    small: list[str], tmp_path: Path, model_folder: Path
) -> None:
    result = from_the_start("run_dir=run", *small, "tracker.plot=true", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    assert json.loads((run / "status.json").read_text())["status"] == "completed"
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[0]["kl"] == 0.0
    assert lines[0]["grad_norm"] > 0.0
    table = pq.read_table(run / "completions/step-000003.parquet")
    assert table.num_rows == 8
    for name in ("config.yaml", "log.txt", "curves.png", "evals.jsonl"):
        assert (run / name).stat().st_size > 0
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    PeftModel.from_pretrained(base, run / "adapter")
    assert "before" in result.stdout and "after" in result.stdout
    assert "its token ids:" in result.stdout


@pytest.fixture(scope="module")
def whole(forks: Forks, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of twelve steps that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert forks.start("run_dir=run", *small, "steps=12", cwd=folder).wait(120) == 0
    return folder / "run"


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    rlkit: RunCLI, small: list[str], tmp_path: Path, whole: Path
) -> None:
    assert rlkit("run_dir=parts", *small, "steps=2").returncode == 0
    result = rlkit("run_dir=parts", *small, "steps=12", "resume=auto")
    assert result.returncode == 0, result.stderr
    assert metrics(tmp_path / "parts") == metrics(whole)
    assert same_adapter(tmp_path / "parts", whole)
    changed = rlkit("run_dir=parts", *small, "resume=auto", "kl.beta=0.5")
    assert changed.returncode == 2
    assert "kl.beta must be 0.04 as in the run being resumed" in changed.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_no_process_and_goes_on_exactly(
    forks: Forks, small: list[str], tmp_path: Path, whole: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = forks.start("run_dir=run", *small, "steps=12", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (run / "checkpoints/step-000003").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    code = process.wait(30)
    assert code == (-9 if number is signal.SIGKILL else 130)
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    if number is not signal.SIGKILL:
        assert json.loads((run / "status.json").read_text())["status"] == "interrupted"
    again = forks.start("run_dir=run", *small, "steps=12", "resume=must", cwd=tmp_path)
    assert again.wait(120) == 0
    assert metrics(run) == metrics(whole)
    assert same_adapter(run, whole)


def test_a_sweep_runs_every_job_in_a_folder_of_its_own(
    rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    result = rlkit(
        "-m", *small, "steps=1", "algorithm.group_size=4,8", "seed=0,1", "hydra.sweep.dir=sweep"
    )
    assert result.returncode == 0, result.stderr
    runs = sorted((tmp_path / "sweep/jobs").iterdir())
    assert len(runs) == 4
    rows = [pq.read_table(run / "completions/step-000000.parquet").num_rows for run in runs]
    assert sorted(rows) == [8, 8, 16, 16]
    firsts = {(run / "completions/step-000000.parquet").read_bytes() for run in runs}
    assert len(firsts) == 4


def test_a_failing_job_says_one_line_and_keeps_the_traceback(
    rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    result = rlkit("run_dir=run", *small, "optim.learning_rate=10", "optim.max_skipped_updates=1")
    status: dict[str, Any] = json.loads((tmp_path / "run/status.json").read_text())
    assert result.returncode == 1
    assert status["status"] == "failed"
    assert "Traceback" not in result.stdout + result.stderr
    assert "Traceback" in (tmp_path / "run/log.txt").read_text()


BAD_INPUT = {
    "model.source=/no/such/folder": "model.source must be",
    "model.source=inputs/corrupt": "model.source must be",
    "task=dataset task.path=inputs/rows.jsonl +task.columns.prompt=prompt": "eval",
    "+reward.functions.short.fn=inputs/bad.py:short": "reward.functions.short",
    "task.max_prompt_length=5": "task.max_prompt_length must be >=",
    "task.max_completion_length=5000": "the model's context",
    "run_dir=inputs/used": "run_dir must be a new or empty folder",
    "+reward.functions.right.fn=tag_anser": "did you mean tag_answer?",
    "algorithm.group_size=1": "group_size",
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_code_2_and_nothing_written(
    small: list[str],
    tmp_path: Path,
    model_folder: Path,
    case: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rlkit"])
    shutil.copytree(model_folder, "inputs/corrupt")
    Path("inputs/corrupt/model.safetensors").write_bytes(b"not a safetensors file")
    Path("inputs/rows.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n')
    Path("inputs/used").mkdir()
    Path("inputs/used/file").write_text("")
    Path("inputs/bad.py").write_text("def short(group):\n    return [1.0]\n")
    overrides = case.split() + ([] if case.startswith("run_dir") else ["run_dir=run"])
    assert cli.run([*small, *overrides]) == 2
    error = capsys.readouterr().err
    assert BAD_INPUT[case] in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["inputs"]


def test_generate_uses_the_adapter_of_a_run(
    rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    assert rlkit("run_dir=run", *small, "optim.learning_rate=0.05").returncode == 0
    arguments = ["generate", "--max-tokens", "8", "--top-k", "1", "Q: 1+1"]
    source = next(o for o in small if o.startswith("model.source=")).split("=", 1)[1]
    base = rlkit(*arguments, "--model", source)
    tuned = rlkit(*arguments, "--run", "run")
    assert base.returncode == tuned.returncode == 0, tuned.stderr
    assert base.stdout != tuned.stdout
    bad = rlkit("generate", "--run", "nowhere", "x")
    assert bad.returncode == 2 and "--run must be the folder of a run" in bad.stderr


def test_env_names_the_versions_that_matter(tmp_path: Path) -> None:
    result = from_the_start("env", cwd=tmp_path)
    assert result.returncode == 0
    assert {"rlkit", "python", "torch", "transformers", "cuda"} <= {
        line.split(":")[0] for line in result.stdout.splitlines()
    }
