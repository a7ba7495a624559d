"""A run notices what has changed since it began: weights, imports, versions, learning rates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlkit.config import Config
from rlkit.launch.composing import register
from rlkit.launch.content import check_content, content_of, write_content
from rlkit.launch.preflight import preflight
from rlkit.launch.since import by_the_clock, changed_rate, changed_versions, planned_steps
from rlkit.launch.sources import imported_files
from rlkit.launch.weights import weights_digest
from rlkit.training.optim import OptimConfig, Schedule


def config_of(*overrides: str) -> Config:
    register()
    (config,) = preflight(["run_dir=new", *overrides])
    return config


def test_any_tensor_of_the_base_model_counts(tmp_path: Path) -> None:
    """Names and sizes stay the same; one element of each tensor in turn does not."""
    file = tmp_path / "model.safetensors"
    tensors = {f"layer.{i}": torch.full((40, 50), float(i)) for i in range(8)}
    tensors["norm"] = torch.ones(3)
    save_file(tensors, file)
    before = weights_digest(tmp_path)
    assert before == weights_digest(tmp_path) == weights_digest(file)
    for name in tensors:
        changed = load_file(file)
        changed[name].view(-1)[0] += 1.0
        save_file(changed, file)
        assert weights_digest(tmp_path) != before, name
        save_file(tensors, file)
        assert weights_digest(tmp_path) == before
    assert weights_digest(tmp_path.parent / tmp_path.name) == before


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"{}" + b"x" * 9000])
def test_odd_files_have_a_digest_as_well(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    before = weights_digest(tmp_path)
    file.write_bytes(content[:-1] + b"y")
    assert weights_digest(tmp_path) != before
    file.unlink()
    assert weights_digest(tmp_path) is None


def test_what_a_reward_file_imports_belongs_to_it(tmp_path: Path) -> None:
    own = tmp_path / "faults_own.py"
    own.write_text(
        "import json\nimport torch\nfrom faults_near import f\nimport faults_pack.inner\n"
    )
    (tmp_path / "faults_near.py").write_text("import faults_far\nimport faults_own\n")
    (tmp_path / "faults_far.py").write_text("def broken(:\n")
    (tmp_path / "faults_pack").mkdir()
    (tmp_path / "faults_pack/__init__.py").write_text("")
    (tmp_path / "faults_pack/inner.py").write_text("x = 1\n")
    found = [path.relative_to(tmp_path.resolve()).as_posix() for path in imported_files(own)]
    assert found == ["faults_far.py", "faults_near.py", "faults_pack/inner.py"]


def test_a_changed_import_is_refused_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("from near_own import f\n")
    Path("near_own.py").write_text("f = 1\n")
    config = config_of("+reward.functions.f.fn=own.py:f")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    write_content(run_dir, content_of(config))
    assert check_content(content_of(config), run_dir, accept=False) == []
    Path("near_own.py").write_text("f = 2\n")
    with pytest.raises(ValueError, match=r"f\.fn \(imports\) must hold .* got a changed near_own"):
        check_content(content_of(config), run_dir, accept=False)
    assert len(check_content(content_of(config), run_dir, accept=True)) == 1


@pytest.mark.parametrize("text", ["", "{", '{"files": {"task.path": 3}}', "[]", "\0"])
def test_a_damaged_record_of_files_can_be_accepted(tmp_path: Path, text: str) -> None:
    (tmp_path / "content.json").write_text(text)
    with pytest.raises(ValueError, match=r"content\.json .*accept_changed_files=true"):
        check_content({}, tmp_path, accept=False)
    assert len(check_content({}, tmp_path, accept=True)) == 1
    write_content(tmp_path, {})
    assert check_content({}, tmp_path, accept=False) == []


def test_other_versions_are_said(tmp_path: Path) -> None:
    assert changed_versions(tmp_path, {"torch": "2"}) == []
    (tmp_path / "run.json").write_text(json.dumps({"versions": {"torch": "1", "peft": "3"}}))
    assert changed_versions(tmp_path, {"torch": "1", "peft": "3"}) == []
    (line,) = changed_versions(tmp_path, {"torch": "2", "numpy": "5"})
    assert "numpy none -> 5, peft 3 -> none, torch 1 -> 2;" in line
    (tmp_path / "run.json").write_text("{")
    assert changed_versions(tmp_path, {"torch": "2"}) == []


def test_a_longer_schedule_says_how_the_rate_jumps(tmp_path: Path) -> None:
    """Linear from 1 to 0 over 4 steps is 0.5 after two; over 8 steps it is 0.75."""
    optim = OptimConfig(learning_rate=1.0, schedule=Schedule.linear, inner_epochs=2)
    config = replace(config_of("steps=8"), optim=optim)
    (line,) = changed_rate(config, planned=4, step=2)
    assert "steps=8 instead of 4 with optim.schedule=linear" in line
    assert "goes on at 0.75 after step 2, where the plan had 0.5" in line
    assert changed_rate(config, planned=8, step=2) == []
    assert changed_rate(config, planned=None, step=2) == []
    assert changed_rate(config, planned=4, step=0) == []
    assert changed_rate(config_of("steps=8"), planned=4, step=2) == []
    (tmp_path / "config.yaml").write_text("steps: 4\n")
    assert planned_steps(tmp_path) == 4
    (tmp_path / "config.yaml").write_text("steps: [\n")
    assert planned_steps(tmp_path) is None


def test_a_stream_that_goes_on_says_what_it_does_not_promise() -> None:
    stream = config_of("task=calculator", "generator=vllm", "environment.admission=stream")
    (line,) = by_the_clock(stream, step=3)
    assert "a step that is made again may differ by rounding" in line
    assert by_the_clock(stream, step=0) == by_the_clock(config_of("task=calculator"), step=3) == []
