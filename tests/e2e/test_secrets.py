"""F16: canaries in environment, arguments, options and addresses reach no file and no screen."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from secret_canaries import CANARIES, REWARD, env, leaks, overrides
from warm_cli import Forks


def run(
    forks: Forks, folder: Path, *words: str, env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return forks.start(*words, cwd=folder, env=env).finish(120.0)


def test_no_canary_leaks_and_the_run_resumes(
    forks: Forks, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    words = overrides(model_folder)
    done = run(forks, tmp_path, *words, "run_dir=runs/a", env=env())
    assert done.returncode == 0, done.stderr
    assert list(leaks(done.stdout, done.stderr, folder=tmp_path / "runs")) == []
    config = (tmp_path / "runs/a/config.yaml").read_text()
    assert "password: env:JUDGE_PASSWORD" in config
    assert "api_key: '***'" in config and "token: '***'" in config
    log = (tmp_path / "runs/a/log.txt").read_text()
    assert "RuntimeError: xxx" in log and "connecting with ***" in log

    more = [word.replace("steps=2", "steps=3") for word in words]
    done = run(forks, tmp_path, *more, "run_dir=runs/a", "resume=must", env=env())
    assert done.returncode == 0, done.stderr
    assert list(leaks(done.stdout, done.stderr, folder=tmp_path / "runs")) == []
    metrics = (tmp_path / "runs/a/metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 3

    without = {name: value for name, value in env().items() if name != "JUDGE_PASSWORD"}
    done = run(forks, tmp_path, *more, "run_dir=runs/a", "resume=must", env=without)
    assert done.returncode == 2
    assert done.stderr == (
        "rlkit: reward.functions.f.options.password must name a variable that is set, got "
        "env:JUDGE_PASSWORD\n"
    )


def test_a_run_that_fails_says_no_secret(forks: Forks, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    words = [word for word in overrides(model_folder) if "functions.g" not in word]
    words += ["stop.no_reward_steps=1", "run_dir=runs/a"]
    done = run(forks, tmp_path, *words, env=env())
    assert done.returncode == 1
    assert "no sample had a reward" in (tmp_path / "runs/a/status.json").read_text()
    assert list(leaks(done.stdout, done.stderr, folder=tmp_path / "runs")) == []


def test_no_canary_leaks_from_a_sweep(forks: Forks, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    words = ["-m", *overrides(model_folder), "steps=1", "seed=0,1", "hydra.sweep.dir=sweep"]
    done = run(forks, tmp_path, *words, env=env())
    assert done.returncode == 0, done.stderr + done.stdout
    shown = run(forks, tmp_path, "report", "sweep", env=env())
    assert shown.returncode == 0
    texts = (done.stdout, done.stderr, shown.stdout, shown.stderr)
    assert list(leaks(*texts, folder=tmp_path / "sweep")) == []


@pytest.mark.parametrize(
    "word",
    [
        f"model.source=https://me:{CANARIES['userinfo']}@host/x?token={CANARIES['query']}",
        f"task.path=https://me:{CANARIES['userinfo']}@host/x",
        f"steps={CANARIES['HF_TOKEN']}",
        f"+reward.functions.x={{fn: a, options: {{api_key: '{CANARIES['option']}'}}}}",
        f"+api_key={CANARIES['option']}",
        f"generator.url={CANARIES['API_KEY_OF_MINE']}",
    ],
)
def test_refusals_hide_secrets(word: str, forks: Forks, tmp_path: Path) -> None:
    group = "generator=vllm_server" if word.startswith("generator") else "task=dataset"
    done = run(forks, tmp_path, "run_dir=a", group, word, env=env())
    assert done.returncode == 2
    assert done.stderr.startswith("rlkit: ") and done.stderr.count("\n") == 1
    assert list(leaks(done.stdout, done.stderr, folder=tmp_path)) == []
