"""Places where tests of Triton kernels run: a GPU, or a CPU under Triton's interpreter.

TRITON_INTERPRET counts when kernels are defined: tests/kernels/test_interpreter.py starts a process
with it.
"""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
MARKS = (
    []
    if INTERPRETED
    else [
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, not interpreted"),
    ]
)
on_triton_device = pytest.mark.parametrize(
    "device",
    [pytest.param(DEVICE, id=f"triton-{'interpreted' if INTERPRETED else DEVICE}", marks=MARKS)],
)
