"""The meter on a CUDA device: what it counts, and what it no longer sees."""

from __future__ import annotations

import pytest
import torch

from rlkit.plan.device import Meter, let_segments_grow

pytestmark = pytest.mark.gpu
MB = 10**6


def take(megabytes: int) -> torch.Tensor:
    return torch.zeros(megabytes * MB, dtype=torch.uint8, device="cuda")


def test_a_peak_is_what_was_there_at_once_until_it_is_forgotten() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.empty_cache()
    let_segments_grow(device)
    take(300)  # loads its kernel, which takes some 90 MB for good
    meter = Meter.start(device)
    meter.restart()
    start = meter.peak()
    kept = take(300)
    assert meter.peak() - start == pytest.approx(300 * MB, abs=32 * MB)
    passing = take(700)
    del passing
    torch.cuda.empty_cache()
    # The allocator's own peak, without a look in between.
    assert meter.peak() - start == pytest.approx(1000 * MB, abs=48 * MB)
    assert meter.in_use() - meter.before - start == pytest.approx(300 * MB, abs=32 * MB)
    meter.restart()
    assert meter.peak() - start == pytest.approx(300 * MB, abs=32 * MB)
    del kept
    torch.cuda.empty_cache()


def test_growing_segments_leave_no_holes() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.empty_cache()
    let_segments_grow(device)
    before = torch.cuda.memory_reserved()
    passing = take(1000)
    del passing
    kept = take(600)
    large = take(500)
    # In fixed segments it would not fit beside `kept`, and the 400 MB there were lost: 1500 MB.
    assert torch.cuda.memory_reserved() - before < 1150 * MB
    del kept, large
    torch.cuda.empty_cache()
