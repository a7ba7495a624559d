"""The logp of a sampled token against float64, in Triton's interpreter or on the GPU."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

_SCRIPT = """
import torch
from rlkit.generation.vllm.accel.burst_kernel import token_logps
from test_burst_kernel import check
check(token_logps, torch.device("cpu"))
"""


def check(token_logps: object, device: torch.device) -> None:
    """Rows of several blocks, float32 and bfloat16, masked words, whole masked blocks, NaN."""
    assert callable(token_logps)
    generator = torch.Generator().manual_seed(0)
    for words, dtype in ((4096, torch.float32), (9000, torch.float32), (300, torch.bfloat16)):
        logits = (8 * torch.randn(5, words, generator=generator)).to(dtype)
        ids = torch.randint(words, (5,), generator=generator)
        logits[1] = -math.inf
        logits[1, words - 2 :] = torch.tensor([1.5, 0.5], dtype=dtype)  # in the last block
        ids[1] = words - 1
        logits[2, 0] = math.nan
        logits[3] += 1000
        wide = torch.full((5, words + 7), math.nan, dtype=dtype)  # a stride that is not the width
        wide[:, :words] = logits
        got = token_logps(wide[:, :words].to(device), ids.to(device)).cpu()
        assert got.dtype is torch.float32 and bool(got[2].isnan())
        truth = logits.double().log_softmax(1).gather(1, ids[:, None])[:, 0]
        rows = [0, 1, 3, 4]
        torch.testing.assert_close(got[rows].double(), truth[rows], atol=1e-4, rtol=1e-6)
        assert abs(got[1] + math.log1p(math.e)) < 1e-5


def test_in_the_interpreter() -> None:
    root = Path(__file__).parents[2]
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env=os.environ
        | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{root}{os.pathsep}{Path(__file__).parent}"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_the_gpu() -> None:
    from rlkit.generation.vllm.accel.burst_kernel import token_logps

    check(token_logps, torch.device("cuda", 0))
