"""`rlkit replay` as a user meets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_process import RunCLI
from warm_cli import Forks

from rlkit import cli
from rlkit.tracking import read_metrics

NAMES = ["grpo", "rloo_token", "ppo", "online_dpo"]


@pytest.fixture(scope="module")
def finished(forks: Forks, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps: checkpoints 3 and 4, batches 0 and 3."""
    folder = tmp_path_factory.mktemp("finished")
    run = forks.start("run_dir=run", *small, "optim.learning_rate=0.01", cwd=folder)
    assert run.wait(120) == 0
    return folder / "run"


def record(run: Path, step: int) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run / f"replay-step-{step:06d}.json").read_text())
    return loaded


def test_four_algorithms_on_one_batch(rlkit: RunCLI, finished: Path) -> None:
    files = {path: path.read_bytes() for path in finished.rglob("*.safetensors")}
    result = rlkit("replay", f"run_dir={finished}", f"algorithms=[{','.join(NAMES)}]")
    assert result.returncode == 0, result.stderr
    found = record(finished, 3)
    assert list(found["algorithms"]) == sorted(NAMES)
    assert found["critic"] == "fresh (every value 0)"
    trained = read_metrics(finished)[3]
    grpo = found["algorithms"]["grpo"]
    assert trained["grad_norm"] > 0.0
    assert grpo["grad_norm"] == pytest.approx(trained["grad_norm"], rel=1e-6)
    assert found["reward"] == pytest.approx(trained["reward"], rel=1e-6)
    for name in NAMES:
        entry = found["algorithms"][name]
        assert entry["cosines"][name] == pytest.approx(1.0, abs=1e-12)
        assert entry["cosines"]["grpo"] == grpo["cosines"][name]
        assert name in result.stdout and f"{entry['grad_norm']:.6g}" in result.stdout
    assert found["algorithms"]["ppo"]["config"]["kl"]["placement"] == "reward"
    assert found["algorithms"]["online_dpo"]["config"]["kl"]["direction"] == "none"
    assert {path: path.read_bytes() for path in finished.rglob("*.safetensors")} == files


def test_the_first_batch_belongs_to_the_base_model(finished: Path) -> None:
    """KL is 0 there, so presets that differ in it alone agree (k3's gradient vanishes at 0)."""
    names = "algorithms=[grpo,gspo,unsloth_2025,dapo]"
    assert cli.run(["replay", f"run_dir={finished}", names, "step=0"]) == 0
    found = record(finished, 0)["algorithms"]
    trained = read_metrics(finished)[0]
    assert found["grpo"]["grad_norm"] == pytest.approx(trained["grad_norm"], rel=1e-6)
    assert found["grpo"]["metrics"]["kl"] == 0.0
    # GSPO's ratio is 1 as well: the same mean over rows of the mean over tokens.
    assert found["grpo"]["cosines"]["gspo"] == pytest.approx(1.0, abs=1e-6)


def test_a_critic_comes_from_the_checkpoint(
    rlkit: RunCLI, small: list[str], tmp_path: Path
) -> None:
    """PPO's advantages depend on it: only with the trained critic is the gradient the trainer's."""
    options = ["algorithm=ppo", "algorithm.value_lr=0.05", "optim.learning_rate=0.01", "steps=3"]
    assert rlkit("run_dir=run", *small, *options).returncode == 0
    run = tmp_path / "run"
    trained = read_metrics(run)[2]
    assert abs(float(trained["value/mean"])) > 0.01
    assert cli.run(["replay", f"run_dir={run}", "algorithms=[grpo,ppo]", "step=2"]) == 0
    found = record(run, 2)
    assert found["critic"] == "the checkpoint's"
    ppo = found["algorithms"]["ppo"]
    assert ppo["grad_norm"] == pytest.approx(trained["grad_norm"], rel=1e-6)
    assert ppo["metrics"]["value/mean"] == pytest.approx(trained["value/mean"], rel=1e-6)
    # A run with a critic can be replayed by algorithms that have none.
    assert cli.run(["replay", f"run_dir={run}", "algorithms=[grpo]", "step=2"]) == 0
    assert record(run, 2)["critic"].startswith("none")


BAD_INPUT = {
    "run_dir=nowhere": "run_dir must be the folder of a run, got nowhere",
    "": "run_dir must be given",
    "run_dir=RUN step=1": "step must be one of 0, 3, the saved batches, got 1",
    "run_dir=RUN step=last": "step: ",
    "run_dir=RUN algorithms=[grop]": "did you mean grpo?",
    "run_dir=RUN algorithms=[]": "algorithms must be different names",
    "run_dir=RUN algorithms=[grpo,grpo]": "algorithms must be different names",
    "run_dir=RUN algorithms=grpo": "algorithms: ",
    "run_dir=RUN algoritms=[grpo]": "did you mean algorithms?",
    "run_dir=RUN 5": "arguments must be key=value, got 5",
    "run_dir=damaged step=3": "step-000003.safetensors is damaged",
    "run_dir=orphan step=3": "no checkpoint of its policy",
    "run_dir=single algorithms=[online_dpo]": "algorithm.group_size must be >= 2",
    "run_dir=empty": "run_dir must hold saved rollouts",
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_code_2_and_nothing_written(
    finished: Path,
    tmp_path: Path,
    case: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    name = case.split()[0].removeprefix("run_dir=") if case else ""
    if name not in ("", "nowhere"):
        shutil.copytree(finished, name, ignore=shutil.ignore_patterns("replay-*"))
    rollouts = Path(name) / "rollouts"
    if name == "damaged":
        (rollouts / "step-000003.safetensors").write_bytes(b"not a safetensors file")
    elif name == "orphan":
        shutil.rmtree("orphan/checkpoints/step-000003")
    elif name == "single":
        index = rollouts / "step-000003.json"
        index.write_text(index.read_text().replace('"group_size": 4', '"group_size": 1'))
    elif name == "empty":
        shutil.rmtree(rollouts)
    assert cli.run(["replay", *case.split()]) == 2
    error = capsys.readouterr().err
    assert BAD_INPUT[case] in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("replay-*"))
