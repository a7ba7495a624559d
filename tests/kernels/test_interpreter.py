"""The Triton kernels on a CPU: the tests of this folder again, under Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from triton_places import INTERPRETED


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="already interpreted")
@pytest.mark.parametrize(
    "files",
    [("logps", "kl", "choice", "forced"), ("layers", "fused"), ("lora_kernels",)],
    ids=["head", "layers", "lora"],
)
def test_fused_kernels_under_the_interpreter(files: tuple[str, ...]) -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when kernels are defined."""
    pytest.importorskip("triton")
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton"]
    done = subprocess.run(
        [*command, *(str(here / f"test_{name}.py") for name in files)],
        cwd=here.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
