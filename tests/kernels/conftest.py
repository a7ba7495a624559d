"""Which implementations and devices the kernel tests run on."""

from __future__ import annotations

import os

import pytest
import torch


def _places() -> list[object]:
    places: list[object] = [pytest.param(("torch", "cpu"), id="torch-cpu")]
    if os.environ.get("TRITON_INTERPRET") == "1":
        places.append(pytest.param(("triton", "cpu"), id="triton-interpreted"))
    if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        places += [
            pytest.param((impl, "cuda"), id=f"{impl}-cuda", marks=pytest.mark.gpu)
            for impl in ("torch", "triton")
        ]
    return places


@pytest.fixture(params=_places())
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    """(implementation, device)."""
    return request.param  # type: ignore[no-any-return]
