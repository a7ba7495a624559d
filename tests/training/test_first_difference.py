"""Two runs of one configuration: `rlkit diff` names the step, the prompt and the token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tracked_run
from tiny_run import CPU, tiny_run

from rlkit.cli import run as command
from rlkit.tracking import Redactor
from rlkit.tracking.local import LocalTracker
from rlkit.training import rollout_files
from rlkit.training.first_difference import first_difference
from rlkit.training.stopping import StopRequest


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps with a checkpoint after each, rollouts, completions and evaluations."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    trainer, state, _ = tiny_run(folder, num_steps=5)
    tracker = LocalTracker(folder, Redactor(), completions=True, plot=False)
    schedule = replace(trainer.schedule, checkpoint_every=1, keep_last=9, evaluate_every=2)
    trainer = replace(trainer, schedule=schedule, tracker=tracker)
    tracker.start(replace(tracked_run.info(folder, num_steps=5), reward_names=("letter",)))
    trainer.fit(state, stop=StopRequest())
    tracker.close(1.0)
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "two"))


def edit(folder: Path, step: int, **changes: torch.Tensor) -> None:
    """Write the rollouts of a step again with other tensors."""
    saved = rollout_files.load(folder, step, device=CPU)
    rollout_files.save(folder, replace(saved, batch=replace(saved.batch, **changes)))


def edit_metrics(folder: Path, step: int, values: Mapping[str, float]) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    lines[step] |= values
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_equal_runs(trained: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_metrics(copy, 1, {"time/step": 99.0})
    assert first_difference(trained, copy) == (5, None, "")
    assert command(["diff", str(trained), str(copy)]) == 0
    assert capsys.readouterr().out == "5 steps are equal bit for bit; nothing differs\n"


def test_the_token_is_named(trained: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch = rollout_files.load(copy, 2, device=CPU).batch
    ids, row = batch.completion_ids.clone(), 5
    assert batch.completion_mask[row, :3].all()
    ids[row, 2] = (ids[row, 2] + 1) % 26
    ids[row + 1, 0] = (ids[row + 1, 0] + 1) % 26
    edit(copy, 2, completion_ids=ids)
    found = first_difference(trained, copy)
    assert (found.steps, found.step) == (2, 2)
    # Three prompts a step with four samples each: row 5 is the second sample of the second.
    assert found.what == (
        f"prompt 7, sample 1, token 2: {int(batch.completion_ids[row, 2])}, not "
        f"{int(ids[row, 2])}; the logps before it are off by at most 0.0e+00 nats"
    )
    assert command(["diff", str(trained), str(copy)]) == 1
    said = "2 steps are equal bit for bit; the runs part in step 2: prompt 7, sample 1, token 2"
    assert capsys.readouterr().out.startswith(said)


def test_equal_tokens_with_other_logps(trained: Path, copy: Path) -> None:
    logps = rollout_files.load(copy, 3, device=CPU).batch.sampling_logps.clone()
    logps[0, 1] += 0.25
    edit(copy, 3, sampling_logps=logps)
    what = "prompt 9, sample 0, token 1: the tokens are the same, its logp is off by 2.5e-01 nats"
    assert first_difference(trained, copy) == (3, 3, what)


def test_what_is_made_before_comes_first(trained: Path, copy: Path) -> None:
    edit_metrics(copy, 4, {"loss": 7.0})
    found = first_difference(trained, copy)
    assert (found.steps, found.step) == (4, 4) and found.what.startswith("loss is ")
    evals = (copy / "evals.jsonl").read_text().splitlines()
    line = json.loads(evals[1])
    assert line["step"] == 2
    evals[1] = json.dumps({**line, "mean": 0.123})
    (copy / "evals.jsonl").write_text("\n".join(evals) + "\n")
    found = first_difference(trained, copy)
    assert (found.steps, found.step) == (2, 2)
    assert found.what.startswith("evaluation 'step 2': mean is ")
    weights = copy / "checkpoints/step-000001/state.json"
    state = json.loads(weights.read_text())
    state.pop("sha256_of_this")
    state["sha256"]["optimizer.safetensors"] = "0" * 64
    weights.write_text(json.dumps(state))
    what = "the weights or moments before it differ: optimizer.safetensors"
    assert first_difference(trained, copy) == (1, 1, what)


def test_without_rollouts_the_character_is_named(trained: Path, copy: Path) -> None:
    shutil.rmtree(copy / "rollouts")
    assert first_difference(trained, copy).step is None
    shutil.copy(copy / "completions/step-000001.parquet", copy / "completions/step-000002.parquet")
    assert first_difference(trained, copy) == (
        2,
        2,
        "the samples are of other prompts: prompt 6, sample 0, not prompt 3, sample 0",
    )


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b", "c"], ["/nowhere", "/nowhere"]])
def test_bad_input_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["diff", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rlkit: ") and error.count("\n") == 1
