"""The small things of the command line: help, version, empty input, quoting, bad sweeps."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_process import RunCLI, environment

from rlkit import __version__, cli
from rlkit.cli import COMMANDS
from rlkit.launch.preflight import preflight
from rlkit.tasks.config import DatasetConfig

HEAVY = ("torch", "transformers", "vllm", "pandas", "matplotlib", "datasets")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_loads_no_heavy_library(command: str) -> None:
    code = (
        "import sys\nfrom rlkit.cli import run\n"
        f"try:\n    code = run([{command!r}, '--help'])\nexcept SystemExit as end:\n"
        "    code = end.code\n"
        f"print([m for m in {HEAVY} if m in sys.modules], code)"
    )
    start = time.process_time()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[] 0", result.stderr
    assert time.process_time() - start < 1.0


def test_version_is_that_of_rlkit(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"rlkit {__version__}\n"


def test_an_unknown_flag_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--nothing", "steps=1"]) == 2
    error = capsys.readouterr().err
    assert error == "rlkit: unrecognized arguments: --nothing (rlkit --help lists what there is)\n"


def test_an_empty_standard_input_is_refused_in_one_line(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "rlkit", "generate"],
        input="\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert result.returncode == 2
    assert result.stderr == "rlkit: prompt must hold text, got an empty standard input\n"


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_hub_that_does_not_answer_is_one_line_at_once(tmp_path: Path, command: str) -> None:
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "rlkit", command, "--model", "nobody/nothing"]
        + (["hi"] if command == "generate" else []),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment(), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"},
    )
    assert result.returncode == 2
    assert "got nobody/nothing: http://127.0.0.1:9 does not answer" in result.stderr
    assert result.stderr.count("\n") == 1
    assert time.monotonic() - start < 15, "its client would try for half a minute"


def test_temperature_0_is_greedy(rlkit: RunCLI, model_folder: Path) -> None:
    arguments = ["generate", "--model", str(model_folder), "--max-tokens", "8", "Q: 1+1"]
    greedy = rlkit(*arguments, "--temperature", "0", "--seed", "1")
    assert greedy.returncode == 0, greedy.stderr
    assert greedy.stdout == rlkit(*arguments, "--top-k", "1", "--seed", "2").stdout


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "task.path=a=b",
            """task.path must be quoted with = in it, got a=b: write "task.path='a=b'\"""",
        ),
        ("task.path=mölk", """with ö in it, got mölk: write "task.path='mölk'\""""),
        ("task.path=a#b", """with # in it, got a#b: write "task.path='a#b'\""""),
        ("task.path=a<b", """with < in it, got a<b: write "task.path='a<b'\""""),
        (
            "task.columns={prompt: question}",
            'task.columns gets new entries: write "+task.columns={prompt: question}"',
        ),
    ],
)
@pytest.mark.parametrize("sweep", [False, True])
def test_overrides_that_hydra_cannot_read_say_how_to_quote(
    override: str, message: str, sweep: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["-m", "seed=0,1"] if sweep else []
    assert cli.run([*more, "task=dataset", override]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    advised = message.rpartition("write ")[2].strip('"')
    (config,) = preflight(["task=dataset", "run_dir=new", advised])
    assert isinstance(config.task, DatasetConfig)
    assert config.task.path == override.partition("=")[2] or config.task.columns


BAD_SWEEPS = {
    "task=dataset task.path=nowhere.jsonl +task.columns.prompt=q": "task.path must exist, got now",
    "+reward.functions.mine.fn=nowhere.py:score": "must name an existing file, got nowhere.py",
    "+reward.functions.mine.fn=own.py:scor": "must name a function, got own.py:scor",
    "model.source=./nowhere": "model.source must be an existing folder or .gguf file",
}


@pytest.mark.parametrize("case", BAD_SWEEPS)
def test_a_sweep_with_a_bad_path_or_reward_does_not_start(
    rlkit: RunCLI, small: list[str], tmp_path: Path, case: str
) -> None:
    (tmp_path / "own.py").write_text("def score(group):\n    return [1.0] * len(group)\n")
    result = rlkit("-m", *small, *case.split(), "seed=0,1", "hydra.sweep.dir=sweep")
    assert result.returncode == 2
    assert result.stderr.startswith("rlkit: sweep not started; job [")
    assert BAD_SWEEPS[case] in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


def test_a_second_launch_names_the_cause_of_failed_jobs(
    rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    bad = ["optim.learning_rate=10", "optim.max_skipped_updates=1", "seed=0,1"]
    sweep = ["-m", *small, *bad, "hydra.sweep.dir=sweep"]
    assert rlkit(*sweep).returncode == 1
    again = rlkit(*sweep)
    assert again.returncode == 1
    jobs = sorted((tmp_path / "sweep/jobs").iterdir())
    causes = [json.loads((job / "status.json").read_text())["message"] for job in jobs]
    for cause in causes:
        assert len(cause) > 10 and cause.split()[0] in again.stdout


def test_the_name_of_the_preset_is_what_a_run_says(
    rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    result = rlkit(*small, "algorithm=gspo", "steps=1", "run_dir=run", "evaluation.num_prompts=200")
    assert result.returncode == 0, result.stderr
    assert "rlkit gspo on max_of_n" in result.stdout
    assert json.loads((tmp_path / "run/run.json").read_text())["algorithm"] == "gspo"
    said = "evaluation.num_prompts=200, but 128 prompts are held out: all 128 are used"
    assert said in result.stdout


def test_check_scores_samples_of_the_base_model(
    rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text("def nothing(group):\n    return [0.0] * len(group)\n")
    kept = [o for o in small if not o.startswith("+reward")]
    rows = [json.dumps({"q": f"Say {i}."}) for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    own = [*kept, "task=dataset", "task.path=rows.jsonl", "+task.columns.prompt=q"]
    held_out = [json.dumps({"q": f"Tell {i}."}) for i in range(4)]
    (tmp_path / "held_out.jsonl").write_text("\n".join(held_out) + "\n")
    own += ["task.eval_path=held_out.jsonl", "task.max_completion_length=8"]
    result = rlkit("check", "--samples=6", *own, "+reward.functions.nothing.fn=own.py:nothing")
    assert result.returncode == 0, result.stderr
    assert "rewards of 8 samples of the base model: 0 above 0" in result.stdout
    assert "warning: no reward above 0 in 8 samples of the base model" in result.stdout
    assert not (tmp_path / "runs").exists()
    some = rlkit("check", "--samples=6", *small)
    assert "warning" not in some.stdout and "of the base model:" in some.stdout
