"""8-bit AdamW against torch's in float32, and its state through a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import CPU, flat, tiny_run
from torch import Tensor

from rlkit.training import checkpoint
from rlkit.training.checkpoint import Checkpoint, CheckpointError, RunProgress
from rlkit.training.optim import OptimConfig, OptimKind, build_optimizer, state_tensors
from rlkit.training.progress import restore
from rlkit.training.stopping import StopRequest

DEVICES = [
    pytest.param(CPU, id="cpu"),
    pytest.param(torch.device("cuda", 0), id="cuda", marks=pytest.mark.gpu),  # paged for real
]
EIGHT_BIT = [OptimKind.adamw8bit, OptimKind.paged_adamw8bit]
BOUND = 0.02
"""Distance from float32's parameters, relative to their norm."""
SIZE = 8192
"""Of the parameters below: from 4096 on the moments have 8 bits."""


def descend(
    kind: OptimKind, *, steps: int, decay: float = 0.0, device: torch.device = CPU
) -> list[Tensor]:
    """The path of a noisy quadratic's minimisation: gradient of |x - goal|^2 / 2 plus noise."""
    generator = torch.Generator().manual_seed(0)
    goal = torch.randn(SIZE, generator=generator).to(device)
    leaf = torch.zeros(SIZE, device=device, requires_grad=True)
    config = OptimConfig(kind=kind, learning_rate=0.02, weight_decay=decay)
    optimizer = build_optimizer({"w": leaf}, config)
    path = []
    for _ in range(steps):
        noise = torch.randn(SIZE, generator=generator).to(device)
        leaf.grad = leaf.detach() - goal + 0.5 * noise
        optimizer.step()
        path.append(leaf.detach().cpu().clone())
    return path


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", EIGHT_BIT)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_eight_bits_follow_float32(kind: OptimKind, decay: float, device: torch.device) -> None:
    truth = descend(OptimKind.adamw, steps=60, decay=decay)
    found = descend(kind, steps=60, decay=decay, device=device)
    # The first update divides the gradient by its own size: 8 bits of it cannot matter. From zero,
    # torch has nothing to decay; bitsandbytes decays what its update gave, but on a CPU.
    decayed = 1.0 - 0.02 * decay if device.type == "cuda" else 1.0
    assert (found[0] - decayed * truth[0]).abs().max() < 1e-5
    for step in (9, 29, 59):
        error = (found[step] - truth[step]).norm() / truth[step].norm()
        assert 0 < error < BOUND, (step, float(error))


def test_eight_bit_moments_take_a_quarter_of_the_memory() -> None:
    sizes = {}
    for kind in (OptimKind.adamw, OptimKind.adamw8bit):
        leaf = torch.zeros(SIZE, requires_grad=True)
        optimizer = build_optimizer({"w": leaf}, OptimConfig(kind=kind))
        leaf.grad = torch.ones(SIZE)
        optimizer.step()
        sizes[kind] = sum(x.nbytes for x in state_tensors(optimizer, {"w": leaf}).values())
    assert sizes[OptimKind.adamw] == 8 * SIZE + 4
    # Two bytes a parameter, two float32 scales a block of 256, and the count.
    assert sizes[OptimKind.adamw8bit] == 2 * SIZE + 2 * 4 * SIZE // 256 + 8


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", list(OptimKind))
def test_restored_state_continues_the_same_path(
    kind: OptimKind, device: torch.device, tmp_path: Path
) -> None:
    """Two updates, save, load into a fresh optimiser, two more: bitwise equal to four updates."""
    config = OptimConfig(kind=kind, learning_rate=0.1)

    def leaves() -> dict[str, Tensor]:
        sizes = (("a", SIZE), ("b", 7))
        return {name: torch.ones(n, device=device, requires_grad=True) for name, n in sizes}

    def run(steps: range, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        for step in steps:
            for leaf in tensors.values():
                leaf.grad = torch.linspace(-1, step, len(leaf)).sin().to(device)
            optimizer.step()

    whole = leaves()
    run(range(4), whole, build_optimizer(whole, config))
    first = leaves()
    optimizer = build_optimizer(first, config)
    run(range(2), first, optimizer)
    progress = RunProgress(step=1, updates=2, skipped_in_row=0, config_hash="x")
    saved = Checkpoint(parameters=first, moments=state_tensors(optimizer, first), progress=progress)
    loaded = checkpoint.load(checkpoint.save(tmp_path, saved, keep_last=2), device=device)
    second = {name: x.clone().requires_grad_() for name, x in loaded.parameters.items()}
    optimizer = build_optimizer(second, config)
    checkpoint.restore_moments(optimizer, second, loaded.moments)
    run(range(2, 4), second, optimizer)
    assert all(torch.equal(second[name], whole[name]) for name in whole)


def test_the_state_of_another_kind_is_refused() -> None:
    leaf = torch.ones(SIZE, requires_grad=True)
    leaf.grad = torch.ones(SIZE)

    def make(kind: OptimKind) -> torch.optim.Optimizer:
        return build_optimizer({"w": leaf}, OptimConfig(kind=kind))

    for old, new in [
        (OptimKind.adamw, OptimKind.adamw8bit),
        (OptimKind.adamw8bit, OptimKind.adamw),
    ]:
        optimizer = make(old)
        optimizer.step()
        moments = state_tensors(optimizer, {"w": leaf})
        with pytest.raises(CheckpointError, match=r"another optim\.kind: w/"):
            checkpoint.restore_moments(make(new), {"w": leaf}, moments)


def test_a_run_with_eight_bit_moments_resumes_bitwise(tmp_path: Path) -> None:
    optim = OptimConfig(kind=OptimKind.adamw8bit, learning_rate=0.02)
    trainer, state, _ = tiny_run(tmp_path / "whole", num_steps=4, optim=optim)
    trainer.fit(state, stop=StopRequest())
    expected = flat(state.learner.named_parameters())
    trainer, state, _ = tiny_run(tmp_path / "parts", num_steps=2, optim=optim)
    trainer.fit(state, stop=StopRequest())
    trainer, state, _ = tiny_run(tmp_path / "parts", num_steps=4, optim=optim)
    saved, _ = checkpoint.load_newest(tmp_path / "parts/checkpoints", device=CPU)
    assert saved is not None
    trainer.fit(restore(state, saved), stop=StopRequest())
    assert torch.equal(flat(state.learner.named_parameters()), expected)
