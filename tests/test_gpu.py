"""The whole loop on a CUDA device: what the CPU tests prove must hold there as well."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import flat, tiny_run

from benchmarks.faults.gpu import out_of_memory
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.models.config import TuningKind
from rlkit.training import checkpoint
from rlkit.training.optim import OptimConfig
from rlkit.training.progress import restore
from rlkit.training.stopping import StopRequest

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def cuda() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.parametrize(
    ("dtype", "tuning", "rate"),
    [(dtype, TuningKind.lora, 0.01) for dtype in DTYPES]
    + [(dtype, TuningKind.full, 0.003) for dtype in DTYPES[:2]],
    ids=str,
)
def test_it_learns_and_starts_at_kl_zero(
    tmp_path: Path, dtype: torch.dtype, tuning: TuningKind, rate: float
) -> None:
    trainer, state, tracker = tiny_run(
        tmp_path,
        num_steps=25,
        optim=OptimConfig(learning_rate=rate),
        algorithm=GRPOConfig(group_size=8),
        dtype=dtype,
        device=cuda(),
        tuning=tuning,
    )
    trainer.fit(state, stop=StopRequest())
    assert tracker.steps[0].metrics["kl"] == 0.0
    assert tracker.evaluations[-1].interval.mean > 0.95


def test_sampler_and_trainer_agree(tmp_path: Path) -> None:
    """Logps of the sampled tokens: the generator's against the policy's, float32."""
    trainer, state, tracker = tiny_run(tmp_path, num_steps=2, device=cuda())
    trainer.fit(state, stop=StopRequest())
    for record in tracker.steps:
        assert record.metrics["sampling/sampling_logp_difference/max"] < 1e-4


def test_cpu_and_cuda_take_the_same_first_step(tmp_path: Path) -> None:
    """Same seeds, same tokens, same gradient norm up to float32 noise."""
    norms, tokens = [], []
    for device in (torch.device("cpu"), cuda()):
        trainer, state, tracker = tiny_run(tmp_path / device.type, num_steps=1, device=device)
        trainer.fit(state, stop=StopRequest())
        norms.append(tracker.steps[0].metrics["grad_norm"])
        tokens.append([row.completion for row in tracker.steps[0].samples])
    assert tokens[0] == tokens[1]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_resume_is_bitwise(tmp_path: Path) -> None:
    trainer, state, _ = tiny_run(tmp_path / "whole", num_steps=4, device=cuda())
    trainer.fit(state, stop=StopRequest())
    expected = flat(state.learner.named_parameters())
    trainer, state, _ = tiny_run(tmp_path / "parts", num_steps=2, device=cuda())
    trainer.fit(state, stop=StopRequest())
    trainer, state, _ = tiny_run(tmp_path / "parts", num_steps=4, device=cuda())
    saved, _ = checkpoint.load_newest(tmp_path / "parts/checkpoints", device=cuda())
    assert saved is not None
    trainer.fit(restore(state, saved), stop=StopRequest())
    assert torch.equal(flat(state.learner.named_parameters()), expected)


def test_memory_does_not_grow_over_steps(tmp_path: Path) -> None:
    trainer, state, tracker = tiny_run(tmp_path, num_steps=20, device=cuda())
    trainer.fit(state, stop=StopRequest())
    peaks = [record.metrics["memory/cuda_peak_bytes"] for record in tracker.steps]
    assert max(peaks[10:]) <= 1.1 * max(peaks[:10])


def test_memory_that_runs_out_makes_smaller_microbatches(tmp_path: Path) -> None:
    """F9: the allocator itself refuses, at twenty sizes; the gradient stays within 1e-6."""
    row = out_of_memory(20, tmp_path)
    assert row.lost == 0, row.note
    assert "memory ran out in 0 of" not in row.note
