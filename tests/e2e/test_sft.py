"""A warm start as a user meets it: SFT, then GRPO from where it ended."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_process import RunCLI
from safetensors.torch import load_file
from warm_cli import Forks

from rlkit.tracking import comparable, read_evals, read_metrics

ROWS = [
    {"q": f"Say {w}.", "a": w} for w in ("one", "two", "red", "sea", "ten", "joy", "sun", "ice")
]
COMMON = [
    *("task=dataset", "task.path=rows.jsonl", "task.eval_fraction=0.3", "+task.columns.prompt=q"),
    *("+task.columns.completion=a", "task.max_completion_length=8", "memory.torch_threads=1"),
    *("evaluation.num_prompts=4", "prompts_per_step=4", "tracker.plot=false", "reward.workers=1"),
    *("+reward.functions.exact.fn=raw_exact", "+reward.functions.exact.options.column=completion"),
]
SFT = ["algorithm=sft", "optim.learning_rate=1e-2", "steps=12", "checkpoint.every=6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sft")
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return made


@pytest.fixture(scope="module")
def sft(forks: Forks, model_folder: Path, folder: Path) -> Path:
    """A finished warm start with an adapter of rank 4."""
    lora = ["model.lora.rank=4", "model.lora.alpha=8"]
    source = f"model.source={model_folder}"
    run = forks.start(*COMMON, *SFT, *lora, source, "run_dir=sft", cwd=folder).finish(120)
    assert run.returncode == 0, run.stderr + run.stdout
    return folder / "sft"


def started(forks: Forks, folder: Path, name: str, *overrides: str) -> dict[str, Any]:
    """A GRPO run of two steps from `sft`, and the configuration that it kept."""
    arguments = [*COMMON, "steps=2", "algorithm.group_size=4", f"run_dir={name}", *overrides]
    result = forks.start(*arguments, "init_from=sft", cwd=folder).finish(120)
    assert result.returncode == 0, result.stderr + result.stdout
    loaded: dict[str, Any] = yaml.safe_load((folder / name / "config.yaml").read_text())
    return loaded


def test_the_loss_falls_and_nothing_is_sampled_to_learn_from(sft: Path) -> None:
    lines = read_metrics(sft)
    losses = [line["loss"] for line in lines]
    assert losses[-1] < losses[0] - 0.1
    assert not any("reward" in line or "sampling/mismatch" in line for line in lines)
    before, after = read_evals(sft)
    assert after.metrics["target_loss"] < before.metrics["target_loss"]
    # A random model is about uniform over its 258 tokens.
    assert before.metrics["target_loss"] == pytest.approx(math.log(258), abs=0.2)
    assert not (sft / "rollouts").exists()


def test_grpo_begins_where_sft_ended(forks: Forks, folder: Path, sft: Path) -> None:
    """The same held-out samples with the same seeds: the evaluations agree bit for bit."""
    kept = started(forks, folder, "grpo")
    assert kept["model"]["adapter"] == "sft/adapter" and kept["model"]["lora"]["rank"] == 4
    end, start = read_evals(sft)[-1], read_evals(folder / "grpo")[0]
    assert start.values == end.values and start.prompt_keys == end.prompt_keys
    assert [s.completion for s in start.samples] == [s.completion for s in end.samples]
    assert start.metrics["kl"] == 0.0  # the reference is the model at the new start
    assert end.metrics["kl"] > 0.01
    assert read_metrics(folder / "grpo")[0]["kl"] == 0.0


def test_another_rank_merges_the_old_adapter_into_the_model(
    forks: Forks, folder: Path, sft: Path
) -> None:
    kept = started(forks, folder, "rank2", "model.lora.rank=2", "model.lora.alpha=4")
    assert kept["model"]["adapter_use"] == "merge" and kept["model"]["lora"]["rank"] == 2
    end, start = read_evals(sft)[-1], read_evals(folder / "rank2")[0]
    assert start.metrics["kl"] == 0.0
    assert start.metrics["entropy"] == pytest.approx(end.metrics["entropy"], abs=1e-4)
    shapes = {
        t.shape[0]
        for n, t in load_file(folder / "rank2/adapter/adapter_model.safetensors").items()
        if "lora_A" in n
    }
    assert shapes == {2}
    # A run that starts from this one has both adapters.
    arguments = [*COMMON, "steps=1", "algorithm.group_size=4", "run_dir=third", "init_from=rank2"]
    result = forks.start(*arguments, cwd=folder).finish(120)
    assert result.returncode == 0, result.stderr + result.stdout
    third, second = read_evals(folder / "third")[0], read_evals(folder / "rank2")[-1]
    assert third.values == second.values
    assert [s.completion for s in third.samples] == [s.completion for s in second.samples]


def test_sft_resumes_bitwise(forks: Forks, model_folder: Path, folder: Path, sft: Path) -> None:
    """6 steps, then 6 more in another process, are 12 steps: adapter, moments and metrics."""
    lora = ["model.lora.rank=4", "model.lora.alpha=8"]
    common = [*COMMON, *SFT, *lora, f"model.source={model_folder}", "run_dir=parts"]
    for steps in ("steps=6", "steps=12"):
        result = forks.start(*common, steps, "resume=auto", cwd=folder).finish(120)
        assert result.returncode == 0, result.stderr + result.stdout
    for file in ("adapter.safetensors", "optimizer.safetensors"):
        whole, parts = (
            load_file(folder / run / "checkpoints/step-000012" / file) for run in ("sft", "parts")
        )
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
    lines, again = (
        [comparable(line) for line in read_metrics(folder / run)] for run in ("sft", "parts")
    )
    assert lines == again


def test_all_weights_and_no_reward(rlkit: RunCLI, model_folder: Path, tmp_path: Path) -> None:
    """Without a reward the held-out likelihood is measured; GRPO starts from the whole model."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = [o for o in COMMON if not o.startswith("+reward")]
    full = ["model.tuning=full", "optim.learning_rate=1e-2", f"model.source={model_folder}"]
    result = rlkit(*data, *SFT, *full, "optim.learning_rate=1e-2", "run_dir=full")
    assert result.returncode == 0, result.stderr + result.stdout
    before, after = read_evals(tmp_path / "full")
    assert after.measure.value == "logp" and after.interval.mean > before.interval.mean
    assert "logp" in result.stdout and "loss" in result.stdout
    more = [
        "+reward.functions.exact.fn=raw_exact",
        "+reward.functions.exact.options.column=completion",
    ]
    result = rlkit(
        *data, *more, "steps=1", "algorithm.group_size=4", "run_dir=grpo", "init_from=full"
    )
    assert result.returncode == 0, result.stderr + result.stdout
    kept = yaml.safe_load((tmp_path / "grpo/config.yaml").read_text())
    assert kept["model"]["source"] == "full/model" and kept["model"]["tuning"] == "lora"


def test_eval_repeats_the_evaluations_of_the_run(forks: Forks, folder: Path, sft: Path) -> None:
    """The run and its base, sampled anew, give the values of its last and first evaluation."""
    arguments = ["eval", "--run", "sft", "--samples", "2", "--prompts", "4", "--out", "x.json"]
    result = forks.start(*arguments, "memory.torch_threads=1", cwd=folder).finish(120)
    assert result.returncode == 0, result.stderr + result.stdout
    found = json.loads((folder / "x.json").read_text())
    base, run = found["evaluations"]
    before, after = read_evals(sft)
    assert (base["label"], run["label"]) == ("base", "sft")
    assert base["values"] == list(before.values) and run["values"] == list(after.values)
    assert found["change"]["mean"] == pytest.approx(run["mean"] - base["mean"])
    assert "change" in result.stdout and "95% interval" in result.stdout


def test_eval_of_a_model_on_two_tasks(
    forks: Forks, model_folder: Path, folder: Path, tmp_path: Path
) -> None:
    """A random model is never right: every number is 0, with Wilson's interval of 8 prompts."""
    arguments = ["eval", "--model", str(model_folder), "task=max_of_n", "task.eval_size=8"]
    side = "+evaluation.tasks.sums={name: chain_sum, eval_size: 4}"
    more = [side, "--samples", "4", "--out", str(tmp_path / "y.json"), "memory.torch_threads=1"]
    result = forks.start(*arguments, *more, cwd=folder).finish(120)
    assert result.returncode == 0, result.stderr + result.stdout
    (record,) = json.loads((tmp_path / "y.json").read_text())["evaluations"]
    metrics = record["metrics"]
    assert metrics["pass@4"] == metrics["maj@4"] == metrics["sums/success"] == 0.0
    assert metrics["pass@2/high"] == pytest.approx(0.3244, abs=1e-4)
    assert metrics["sums/pass@4/high"] == pytest.approx(0.4899, abs=1e-4)
    assert "sums/maj@4" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "task=echo"], "rlkit eval must be given --run or --model"),
        (["eval", "--model", "starter"], "must be given task=NAME"),
        (["eval", "--run", "nowhere"], "--run must be the folder of a run, got nowhere"),
        (["eval", "--run", "sft", "--samples", "0"], "--samples must be >= 1, got 0"),
        (["eval", "--run", "sft", "--sample", "2"], "--sample is not an option of rlkit eval"),
        (["eval", "--run", "sft", "--out", "x.csv"], "--out must end in .json, got x.csv"),
        (["eval", "--run", "sft", "+evaluation.tasks.a.name=b"], "evaluation.tasks.a.name must be"),
        (
            ["eval", "--run", "sft", "+evaluation.tasks.a.name=echo"],
            "max_completion_length must be <= 8",
        ),
        (
            [
                *("eval", "--run", "sft"),
                "+evaluation.tasks.a={name: calculator, max_prompt_length: 8, "
                "max_completion_length: 8}",
            ],
            "a.name must be a task with no environment, as the run's own, got calculator with the",
        ),
    ],
)
def test_bad_evaluations_are_one_line(
    forks: Forks, folder: Path, sft: Path, arguments: list[str], message: str
) -> None:
    result = forks.start(*arguments, cwd=folder).finish(60)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr and result.stderr.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init_from=nowhere"], "init_from must be the folder of a run, got nowhere"),
        (["init_from=sft", "model.source=other/model"], "model.source must be left as it is with"),
        (["init_from=sft", "model.adapter=x"], "model.adapter must be unset with init_from=sft"),
        (["init_from=sft", "model=tabular", "task=tabular", "generator=tabular"], "init_from must"),
        (["algorithm=sft", "algorithm.group_size=4"], "algorithm.group_size must be 1 with"),
        (["algorithm=sft", "task.target=b"], "task.target must name columns of the task"),
        (
            ["algorithm=sft", "task.max_completion_length=3"],
            "task.max_completion_length must be >=",
        ),
    ],
)
def test_bad_input_is_one_line(
    forks: Forks,
    model_folder: Path,
    folder: Path,
    sft: Path,
    overrides: list[str],
    message: str,
) -> None:
    common = [] if "model=tabular" in overrides else COMMON
    if "algorithm=sft" in overrides:
        common = [*common, f"model.source={model_folder}"]
    arguments = [*common, "run_dir=bad", *overrides]
    result = forks.start(*arguments, cwd=folder).finish(60)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr and result.stderr.strip().count("\n") == 0
    assert not (folder / "bad").exists()


def test_a_curriculum_resumes_bitwise(rlkit: RunCLI, model_folder: Path, tmp_path: Path) -> None:
    """Its draws depend on what was right before, which the checkpoint holds."""
    part = "name: max_of_n, eval_size: 4"
    common = [
        *(f"model.source={model_folder}", "task=mix", "task.max_completion_length=8"),
        *("task.curriculum=success", f"+task.parts.a={{{part}, n: 2}}"),
        *(f"+task.parts.b={{{part}, n: 5}}", "prompts_per_step=4", "algorithm.group_size=2"),
        *("evaluation.num_prompts=4", "evaluation.samples_per_prompt=1", "checkpoint.every=2"),
        *("memory.torch_threads=1", "tracker.plot=false", "reward.workers=1", "resume=auto"),
    ]
    for name, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        result = rlkit(*common, f"steps={steps}", f"run_dir={name}")
        assert result.returncode == 0, result.stderr + result.stdout
    whole, parts = (
        [comparable(line) for line in read_metrics(tmp_path / run)] for run in ("whole", "parts")
    )
    assert whole == parts and len(whole) == 4
    assert {"curriculum/a/samples", "curriculum/b/samples"} & whole[0].keys()
    state = json.loads((tmp_path / "parts/checkpoints/step-000004/state.json").read_text())
    assert state["progress"]["success"].keys() <= {"a", "b"}
