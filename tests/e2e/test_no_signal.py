"""Runs that have nothing to learn from: skipped steps, and ends that say why."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from cli_process import RunCLI

from rlkit.tracking import read_metrics

REWARDS = '''\
"""Silent where the file `silent` says so, worthless, or always silent."""

import pathlib

HERE = pathlib.Path(__file__).parent


def moody(group):
    if (HERE / "silent").exists():
        return [None] * len(group)
    return [float(len(completion.text) % 3) for completion in group]


def nothing(group):
    return [0.0] * len(group)


def never(group):
    return [None] * len(group)


calls = 0


def few(group):
    """Scores 1, 2, 4, 0, 1, ... samples of the groups that it is called with."""
    global calls
    calls += 1
    scored = (0, 1, 2, 4)[calls % 4]
    values = [float(i + len(completion.text)) for i, completion in enumerate(group)]
    return [value if i < scored else None for i, value in enumerate(values)]
'''


@pytest.fixture
def own(small: list[str], tmp_path: Path) -> list[str]:
    """Overrides without a reward; `own.py` has some."""
    (tmp_path / "own.py").write_text(REWARDS)
    rows = [json.dumps({"q": f"Say {i}."}) for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    dropped = ("task=", "+reward", "steps=", "evaluation.num")
    return [
        *(override for override in small if not override.startswith(dropped)),
        *("task=dataset", "task.path=rows.jsonl", "+task.columns.prompt=q"),
        *("task.eval_fraction=0.5", "task.max_completion_length=8"),
        *("evaluation.num_prompts=2", "run_dir=run"),
    ]


def test_a_step_without_rewards_is_skipped_and_training_goes_on(
    rlkit: RunCLI, own: list[str], tmp_path: Path
) -> None:
    """Two steps with rewards, two without, two with: the parameters of the silent ones stay."""
    moody = ["+reward.functions.moody.fn=own.py:moody", "checkpoint.keep_last=9"]
    assert rlkit(*own, *moody, "steps=2").returncode == 0
    (tmp_path / "silent").touch()
    result = rlkit(*own, *moody, "steps=4", "resume=auto")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "step 2 is skipped: no sample has a reward" in result.stdout
    assert "reward.functions.moody (None for every sample)" in result.stdout
    (tmp_path / "silent").unlink()
    assert rlkit(*own, *moody, "steps=6", "resume=auto").returncode == 0
    lines = read_metrics(tmp_path / "run")
    assert [line["skipped_updates"] for line in lines] == [0, 0, 1, 1, 0, 0]
    assert [math.isnan(line["reward"]) for line in lines] == [False] * 2 + [True] * 2 + [False] * 2
    files = [tmp_path / f"run/checkpoints/step-{n:06d}/adapter.safetensors" for n in (2, 4, 6)]
    before, silent, after = (file.read_bytes() for file in files)
    assert before == silent != after


def test_steps_without_rewards_end_the_run_and_so_does_its_resumption(
    rlkit: RunCLI, own: list[str], tmp_path: Path
) -> None:
    never = [*own, "+reward.functions.never.fn=own.py:never", "steps=9", "stop.no_reward_steps=3"]
    for arguments in (never, [*never, "resume=auto"]):
        result = rlkit(*arguments)
        assert result.returncode == 1
        message = json.loads((tmp_path / "run/status.json").read_text())["message"]
        assert "steps in a row (stop.no_reward_steps)" in message
        assert "reward.functions.never (None for every sample)" in message
    # The second process does one step and remembers the three before it.
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1, 2, 3]


def test_a_base_model_that_earns_nothing_is_said_before_the_first_step(
    rlkit: RunCLI, own: list[str], tmp_path: Path
) -> None:
    nothing = [*own, "+reward.functions.nothing.fn=own.py:nothing"]
    result = rlkit(*nothing, "steps=9", "stop.no_signal_steps=2")
    assert result.returncode == 1
    said = result.stdout.index("no reward above 0 in 2 samples of the base model")
    assert said < result.stdout.index("step  reward")
    assert "do one of: an easier task" in result.stdout
    message = json.loads((tmp_path / "run/status.json").read_text())["message"]
    assert "no reward above 0 in 2 steps in a row (stop.no_signal_steps)" in message
    assert len(read_metrics(tmp_path / "run")) == 2
    # Never by default in a single run.
    assert rlkit(*nothing, "steps=3", "run_dir=all").returncode == 0


@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "online_dpo", "xpo"])
def test_training_goes_on_with_groups_that_lost_samples(
    rlkit: RunCLI, own: list[str], tmp_path: Path, algorithm: str
) -> None:
    few = [f"algorithm={algorithm}", "algorithm.group_size=4", "prompts_per_step=1"]
    result = rlkit(*own, *few, "+reward.functions.few.fn=own.py:few", "steps=5")
    assert result.returncode == 0, result.stdout + result.stderr
    lines = read_metrics(tmp_path / "run")
    assert {line["rollouts/without_reward"] for line in lines} == {0.0, 2.0, 3.0, 4.0}
