from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlkit.runtime import files
from rlkit.schema import content_hash
from rlkit.tracking import TrackingError
from rlkit.training import checkpoint
from rlkit.training.checkpoint import Checkpoint, CheckpointError, RunProgress
from rlkit.training.optim import (
    OptimConfig,
    Schedule,
    build_optimizer,
    learning_rate,
    state_tensors,
)

CPU = torch.device("cpu")


def example(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    return Checkpoint(
        parameters={"a.lora_A": torch.randn(3, 4, generator=generator)},
        moments={"a.lora_A/exp_avg": torch.randn(3, 4, generator=generator)},
        progress=RunProgress(step=step, updates=2 * step, skipped_in_row=0, config_hash="abc"),
    )


def test_what_is_saved_is_loaded_bitwise(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, example(3), keep_last=2)
    loaded, problems = checkpoint.load_newest(tmp_path, device=CPU)
    assert loaded is not None and problems == []
    assert loaded.progress == example(3).progress
    assert torch.equal(loaded.parameters["a.lora_A"], example(3).parameters["a.lora_A"])
    assert torch.equal(loaded.moments["a.lora_A/exp_avg"], example(3).moments["a.lora_A/exp_avg"])


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, example(step), keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000003"]


def test_multiples_are_kept_as_well(tmp_path: Path) -> None:
    for step in range(1, 9):
        checkpoint.save(tmp_path, example(step), keep_last=2, keep_every=3)
    kept = sorted(int(p.name.removeprefix("step-")) for p in tmp_path.iterdir())
    assert kept == [3, 6, 7, 8]


def test_every_flipped_bit_of_the_state_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, example(5), keep_last=2)
    file = path / "state.json"
    whole = file.read_bytes()
    noticed = 0
    for bit in range(len(whole) * 8):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        try:
            assert checkpoint.verify(path) == example(5).progress, f"bit {bit} is silent"
        except CheckpointError as error:
            assert "state.json" in str(error)
            noticed += 1
    assert noticed > 0.9 * len(whole) * 8  # the rest are blanks that became other blanks


@pytest.mark.parametrize(
    ("field", "value"),
    [("step", None), ("step", 6), ("updates", -1), ("samples", 1.5), ("loss_scale", ["a"])],
)
def test_a_state_without_a_hash_must_make_sense(tmp_path: Path, field: str, value: object) -> None:
    """Older versions wrote none: nonsense, or another step than the folder's, is damage."""
    for step in (4, 5):
        checkpoint.save(tmp_path, example(step), keep_last=2)
    file = tmp_path / "step-000005/state.json"
    state = json.loads(file.read_text())
    del state["sha256_of_this"]
    file.write_text(json.dumps(state))
    assert checkpoint.load_newest(tmp_path, device=CPU)[1] == []
    state["progress"][field] = value
    file.write_text(json.dumps(state))
    loaded, problems = checkpoint.load_newest(tmp_path, device=CPU)
    assert loaded is not None and loaded.progress.step == 4
    assert len(problems) == 1 and str(file) in problems[0]
    assert checkpoint.find_newest(tmp_path) == (tmp_path / "step-000004", problems)


FILES = ["adapter.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_damage_is_found_named_and_the_previous_one_is_used(
    tmp_path: Path, name: str, damage: str
) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, example(step), keep_last=2)
    file = tmp_path / "step-000002" / name
    content = bytearray(file.read_bytes())
    if damage == "delete":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    loaded, problems = checkpoint.load_newest(tmp_path, device=CPU)
    assert loaded is not None and loaded.progress.step == 1
    assert name in problems[0]


def test_a_save_that_dies_leaves_the_previous_one_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, example(1), keep_last=2)

    def full_disk(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync", full_disk)
    with pytest.raises(TrackingError, match=r"cannot write .*step-000002: No space left"):
        checkpoint.save(tmp_path, example(2), keep_last=2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_no_checkpoint_is_not_an_error(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path / "none", device=CPU) == (None, [])


def test_a_payload_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, example(1), keep_last=2)
    file = path / "adapter.safetensors"
    file.write_bytes(b"\x80\x04cposix\nsystem\n")
    state = json.loads((path / "state.json").read_text())
    del state["sha256_of_this"]  # as older versions wrote it
    state["sha256"][file.name] = content_hash(file)
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors cannot be read"):
        checkpoint.load(path, device=CPU)


def test_restored_moments_continue_the_same_trajectory() -> None:
    """Two updates, save, load into a fresh optimiser, two more: bitwise equal to four updates."""

    def run(
        steps: range, start: torch.Tensor, moments: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        leaf = start.clone().requires_grad_()
        optimizer = build_optimizer({"w": leaf}, OptimConfig(learning_rate=0.1))
        checkpoint.restore_moments(optimizer, {"w": leaf}, moments)
        for step in steps:
            leaf.grad = torch.full_like(leaf, float(step + 1)).cumsum(0)
            optimizer.step()
        return leaf.detach(), state_tensors(optimizer, {"w": leaf})

    start = torch.linspace(-1, 1, 5)
    whole, _ = run(range(4), start, {})
    half, moments = run(range(2), start, {})
    resumed, _ = run(range(2, 4), half, moments)
    assert torch.equal(whole, resumed)


def test_learning_rate_is_a_function_of_the_count() -> None:
    constant = OptimConfig(learning_rate=2.0, warmup_steps=4)
    rates = [learning_rate(constant, update=u, total_updates=10) for u in range(6)]
    assert rates == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    linear = OptimConfig(learning_rate=1.0, schedule=Schedule.linear)
    assert [learning_rate(linear, update=u, total_updates=4) for u in range(4)] == [
        1,
        0.75,
        0.5,
        0.25,
    ]
    cosine = OptimConfig(learning_rate=1.0, schedule=Schedule.cosine)
    assert learning_rate(cosine, update=2, total_updates=4) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "optim.learning_rate must be > 0, got 0.0"),
        ({"betas": [0.9, 1.0]}, r"optim.betas must be two numbers in \[0, 1\)"),
        ({"max_grad_norm": -1.0}, "optim.max_grad_norm must be > 0, got -1.0"),
        ({"inner_epochs": 0}, "optim.inner_epochs must be >= 1, got 0"),
    ],
)
def test_optimiser_options_have_ranges(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**options)  # type: ignore[arg-type]
