"""Products of a few rows against float64, with the inputs in one part and in several."""

from __future__ import annotations

import pytest
import torch
from triton_places import DEVICE, INTERPRETED, MARKS

pytestmark = MARKS


@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("splits", "block_n"), [(1, 32), (3, 16), (6, 64)], ids=str)
@pytest.mark.parametrize("rows", [1, 37, 64])
def test_triton_narrow(rows: int, splits: int, block_n: int, has_bias: bool) -> None:
    from benchmarks.kernels.narrow_kernel import NarrowProduct, NarrowTiling

    torch.manual_seed(0)
    kind = torch.bfloat16
    x, w = torch.randn(rows, 192).to(kind), torch.randn(80, 192).to(kind)
    bias = torch.randn(80).to(kind) if has_bias else None
    truth = x.double() @ w.double().T + (0.0 if bias is None else bias.double())
    early = not INTERPRETED and torch.cuda.get_device_capability()[0] >= 9
    for is_early in {False, early}:
        tile = NarrowTiling(block_n, 32, splits, 4, 2, is_early)
        product = NarrowProduct(w.to(DEVICE), None if bias is None else bias.to(DEVICE), tile)
        first = product(x.to(DEVICE))
        # One rounding of a float32 sum; two at the edge of another.
        error = (first.cpu().double() - truth).abs() / (1 + truth.abs())
        assert float(error.max()) <= torch.finfo(kind).eps
        assert torch.equal(product(x.to(DEVICE)), first), "the workspace is as new"


def test_triton_narrow_wants_whole_steps() -> None:
    from benchmarks.kernels.narrow_kernel import NarrowProduct, NarrowTiling

    weight = torch.zeros(16, 96, dtype=torch.bfloat16, device=DEVICE)
    with pytest.raises(ValueError, match="must be a multiple of 64, got 96"):
        NarrowProduct(weight, None, NarrowTiling(16, 32, 2, 4, 2, False))
