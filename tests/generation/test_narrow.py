"""Products of few rows with numbers or with codes of e4m3 against float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

_SCRIPT = """
import torch
from test_narrow import check
check(torch.device("cpu"), torch.float32, early=False)
"""
CASES = (
    # rows, outputs, inputs, rows of A, bias: one block, cut inputs, many rows, odd sizes.
    (3, 40, 64, 0, False),
    (64, 200, 256, 5, True),
    (130, 72, 48, 32, True),
    (1, 128, 1024, 16, False),
)


def check(device: torch.device, dtype: torch.dtype, *, early: bool) -> None:
    """Compare with float64 to the rounding of one sum; the same call gives the same bits.

    `early`: all cuts, each started before the kernel ahead has ended.
    """
    from rlkit.generation.vllm.accel.narrow import Workspace, tiling, tilings
    from rlkit.models.fp8 import quantise
    from rlkit.models.fp8_kernel import values

    generator = torch.Generator().manual_seed(0)
    workspace = Workspace(device)
    _every_code(device, dtype, workspace)
    for rows, outputs, inputs, more, has_bias in CASES:
        x = torch.randn(rows, inputs + 3, generator=generator).to(device, dtype)[:, :inputs]
        w = torch.randn(outputs, inputs, generator=generator).to(device, dtype) * inputs**-0.5
        a = torch.randn(more, inputs, generator=generator).to(device, dtype) if more else None
        bias = torch.randn(outputs, generator=generator).to(device, dtype) if has_bias else None
        codes, scale = quantise(w)
        number = codes.view(torch.float8_e4m3fn).double() * scale.double()[:, None]
        assert torch.equal(values(codes, scale, dtype).double(), number)
        for held in ((codes, scale, number), (w, None, w.double())):
            _compare(x, held, a, bias, workspace, None)
        if inputs == 256:  # a whole number of all steps
            for tile in list(tilings(outputs, inputs, more))[:: 1 if early else 3]:
                tile = tile._replace(early=early)
                _compare(x, (codes, scale, number), a, bias, workspace, tile)
    assert tiling(128, 1024).splits > 1


def _every_code(device: torch.device, dtype: torch.dtype, workspace: Any) -> None:
    """A row that picks one input gives the numbers of the codes, bit for bit."""
    from rlkit.generation.vllm.accel.narrow import NarrowWeight, product

    every = torch.arange(256, dtype=torch.uint8)
    every = every[every.view(torch.float8_e4m3fn).float().isfinite()]
    assert len(every) == 254
    codes = every[:, None].repeat(1, 64).to(device)
    x = torch.eye(64, dtype=dtype, device=device)
    for factor in (1.0, 2.0**-15, 32.0):
        scale = torch.full((254,), factor, device=device)
        out = product(x, NarrowWeight(codes, scale, workspace), None, None)
        number = every.view(torch.float8_e4m3fn).double() * factor
        assert torch.equal(out.double().cpu(), number.expand(64, 254))


def _compare(x: Any, held: Any, a: Any, bias: Any, workspace: Any, tile: Any) -> None:
    from rlkit.generation.vllm.accel.narrow import NarrowWeight, product

    values, scale, number = held
    outputs, more = len(values), 0 if a is None else len(a)
    weight = NarrowWeight(values, scale, workspace)
    out = product(x, weight, a, bias, padding=4, tile=tile)
    assert out.shape == (len(x), outputs + more + 4) and out.dtype is x.dtype
    truth = x.double() @ number.T + (0 if bias is None else bias.double())
    if a is not None:
        truth = torch.cat([truth, x.double() @ a.double().T], 1)
    got = out[:, : outputs + more]
    error = (got.double() - truth).abs().max() / truth.abs().max()
    # Float32 is also what sums are made in.
    bound = torch.finfo(x.dtype).eps * (8 if x.dtype is torch.float32 else 1)
    assert error <= bound, (x.shape, values.shape, tile, float(error))
    assert torch.equal(product(x, weight, a, bias, padding=4, tile=tile)[:, : outputs + more], got)
    assert int(workspace.arrived.abs().max()) == 0, "the workspace is as new"


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


def test_a_cut_that_does_not_fit_is_refused() -> None:
    pytest.importorskip("triton")
    from rlkit.generation.vllm.accel.narrow import NarrowTiling, NarrowWeight, Workspace, product

    x, workspace = torch.zeros(64, 96), Workspace(torch.device("cpu"))
    for outputs, splits in ((16, 2), (2**17, 3)):
        weight = NarrowWeight(torch.zeros(outputs, 96), None, workspace)
        with pytest.raises(
            ValueError, match=r"a cut must divide 96 inputs, and its parts must fit"
        ):
            product(x, weight, None, None, tile=NarrowTiling(64, 32, splits, 4, 3))


@pytest.mark.gpu
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_kernels_on_the_gpu(dtype: torch.dtype, early: bool) -> None:
    if early and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("a kernel starts before the last one has ended from 9.0 on")
    check(torch.device("cuda"), dtype, early=early)
