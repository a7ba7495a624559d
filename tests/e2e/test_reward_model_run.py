"""`rlkit reward-model` and runs that a reward model rewards, on a tiny model."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from cli_process import RunCLI
from safetensors.torch import load_file
from tiny_classifiers import write_classifier

OPTIONS = "reward.functions.rm.options"


@pytest.fixture(scope="module")
def plain(small: list[str]) -> list[str]:
    kept = [o for o in small if not o.startswith("+reward")]
    return [*kept, "task.max_completion_length=6", "evaluation.kl=none"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The better answer has more a's than b's."""
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = []
    for i in range(200):
        length = draw.randint(2, 5)
        good, bad = ("".join(draw.choices(s, k=length)) for s in ("aaac", "bbbc"))
        rows.append({"prompt": f"say {i}", "chosen": good, "rejected": bad})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_an_adapter_on_the_policys_base_is_trained_and_rewards_a_run(
    rlkit: RunCLI, plain: list[str], pairs: Path, tmp_path: Path
) -> None:
    model = next(o for o in plain if o.startswith("model.source="))
    trained = rlkit(
        "reward-model", f"pairs={pairs}", "out=rm", "epochs=4", "optim.learning_rate=0.01", model
    )
    assert trained.returncode == 0, trained.stderr
    record = json.loads((tmp_path / "rm/reward_model.json").read_text())
    assert record["accuracy"] > 0.95 and f"{record['accuracy']:.3f} of" in trained.stdout
    chosen = ["+reward.functions.rm.fn=reward_model", f"+{OPTIONS}.source=rm"]
    result = rlkit(*plain, *chosen, "run_dir=run")
    assert result.returncode == 0, result.stderr
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert all(m["rewards/rm/std"] > 0.0 and m["time/reward/rm"] > 0.0 for m in metrics)
    assert "reward model" in rlkit("check", *plain, *chosen).stdout
    again = rlkit(*plain, *chosen, "run_dir=again", "steps=2")
    assert again.returncode == 0, again.stderr
    again = rlkit(*plain, *chosen, "run_dir=again", "resume=must")
    assert again.returncode == 0, again.stderr
    name = "adapter/adapter_model.safetensors"
    first, second = load_file(tmp_path / "run" / name), load_file(tmp_path / "again" / name)
    assert all(bool((first[k] == second[k]).all()) for k in first)
    result = rlkit(*plain, *chosen, "model.lora.rank=4", "run_dir=other")
    assert result.returncode == 2 and f"{OPTIONS}.source must fit the policy's" in result.stderr
    assert not (tmp_path / "other").exists()


def test_a_classifier_in_a_process_of_its_own_rewards_a_run(
    rlkit: RunCLI, plain: list[str], tmp_path: Path
) -> None:
    write_classifier(tmp_path / "rm", "pad is eos")
    chosen = ["+reward.functions.rm.fn=reward_model", f"+{OPTIONS}.source=rm"]
    runs = {}
    for place in ("cpu", "process"):
        result = rlkit(*plain, *chosen, f"+{OPTIONS}.device={place}", f"run_dir={place}")
        assert result.returncode == 0, result.stderr
        lines = (tmp_path / place / "metrics.jsonl").read_text().splitlines()
        runs[place] = [json.loads(line)["rewards/rm/mean"] for line in lines]
    assert runs["cpu"] == pytest.approx(runs["process"], abs=1e-5)
    shutil.rmtree(tmp_path / "rm")
    write_classifier(tmp_path / "rm", "own pad", num_labels=2)
    result = rlkit(*plain, *chosen, "run_dir=none")
    assert result.returncode == 2
    assert f"rlkit: {OPTIONS}.source must have one label, the score, got rm with 2" in result.stderr
    assert not (tmp_path / "none").exists()
