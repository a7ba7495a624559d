"""The product of few rows with codes of e4m3 against float64, interpreted or on the GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

_SCRIPT = """
import torch
from test_fp8_product import check
check(torch.device("cpu"), torch.float32)
"""
CASES = (
    # rows, outputs, inputs, rows of A, bias: one block, cut inputs, many rows, odd sizes.
    (3, 40, 64, 0, False),
    (64, 200, 256, 5, True),
    (130, 72, 48, 32, True),
    (1, 128, 1024, 16, False),
)


def check(device: torch.device, dtype: torch.dtype) -> None:
    """Compare with float64 to the rounding of one sum; the same call gives the same bits."""
    from rlkit.generation.vllm.accel.fp8_product import Fp8Rows, Workspace, product, tiling
    from rlkit.models.fp8 import quantise
    from rlkit.models.fp8_kernel import values

    generator = torch.Generator().manual_seed(0)
    workspace = Workspace(device)
    # Float32 is also what sums are made in.
    bound = torch.finfo(dtype).eps * (8 if dtype is torch.float32 else 1)
    for rows, outputs, inputs, more, has_bias in CASES:
        x = torch.randn(rows, inputs + 3, generator=generator).to(device, dtype)[:, :inputs]
        w = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
        a = torch.randn(more, inputs, generator=generator).to(device, dtype) if more else None
        bias = torch.randn(outputs, generator=generator).to(device, dtype) if has_bias else None
        codes, scale = quantise(w.to(device))
        number = codes.view(torch.float8_e4m3fn).double() * scale.double()[:, None]
        assert torch.equal(values(codes, scale, dtype).double(), number)
        weight = Fp8Rows(codes, scale, workspace)
        out = product(x, weight, a, bias, padding=4)
        assert out.shape == (rows, outputs + more + 4) and out.dtype is dtype
        truth = x.double() @ number.T + (0 if bias is None else bias.double())
        if a is not None:
            truth = torch.cat([truth, x.double() @ a.double().T], 1)
        got = out[:, : outputs + more]
        error = (got.double() - truth).abs().max() / truth.abs().max()
        assert error <= bound, (rows, outputs, inputs, float(error))
        assert torch.equal(product(x, weight, a, bias, padding=4)[:, : outputs + more], got)
        assert int(workspace.arrived.abs().max()) == 0
    assert tiling(1, 128, 1024).splits > 1


def test_kernels_interpreted() -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when kernels are defined."""
    pytest.importorskip("triton")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env=os.environ
        | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{root}{os.pathsep}{Path(__file__).parent}"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_kernels_on_the_gpu(dtype: torch.dtype) -> None:
    check(torch.device("cuda"), dtype)
