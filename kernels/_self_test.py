"""Compile the fused log-prob kernels once a process and compare them with the chunked path."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rlkit.kernels import _logps_torch
from rlkit.kernels.lm_head import LogitMap
from rlkit.kernels.tilings import Tiling, tiling_of

_log = logging.getLogger(__name__)
_ROWS, _WIDTH, _WORDS = 144, 128, 1040
"""Ragged tiles; multiples of 16, as real shapes are, so that real calls compile less."""
_WORKSPACE_BYTES = 2**26
_MOST_NATS = 1e-4
_MOST_GRADIENT_ERROR = 1e-2
"""A few roundings to 16 bits; wrong code is off by orders of magnitude more."""


@cache
def fused_runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell if the card compiles the fused kernels and agrees with the chunked path.

    If not, one line of the log says why the chunked path is used.
    """
    reason = _refusal(device, dtype)
    if reason is not None:
        _log.warning("log-probs on %s: the chunked path is used, because %s", device, reason)
    return reason is None


def _refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    major, minor = torch.cuda.get_device_capability(device)
    if tiling_of((major, minor)) is None:
        return f"the fused kernels have no tiling for compute capability {major}.{minor}"
    try:
        logps, gradient = errors(device, dtype)
    except Exception as error:  # the compiler and the driver raise types of many libraries
        first = (str(error).splitlines() or [""])[0][:200]
        return f"the fused kernels failed with {type(error).__name__}: {first}"
    if not (logps <= _MOST_NATS and gradient <= _MOST_GRADIENT_ERROR):
        return (
            f"the fused kernels missed the chunked path by {logps:.1e} nats "
            f"and their gradients by {gradient:.1e}"
        )
    return None


def errors(
    device: torch.device, dtype: torch.dtype, tiling: Tiling | None = None
) -> tuple[float, float]:
    """Return the largest error of a logp, in nats, and the largest relative one of a gradient row.

    The truth is the chunked path on the same numbers. Both passes run, with and without E.
    """
    from rlkit.kernels import _logps_triton

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(_WORDS, _WIDTH, generator=generator)
    targets = torch.randint(_WORDS, (_ROWS,), generator=generator)
    pull = torch.linspace(-0.02, 0.12, _ROWS)[:, None]
    hidden = pull * weight[targets] + 0.2 * torch.randn(_ROWS, _WIDTH, generator=generator)
    inputs = hidden.to(device, dtype), weight.to(device, dtype), targets.to(device)
    options: dict[str, Any] = {"entropy": False, "workspace_bytes": _WORKSPACE_BYTES}
    current: Any = torch.cuda.device_of  # Triton launches on the current device
    with torch.no_grad(), current(inputs[0]):
        exact = _logps_torch.forward(*inputs, LogitMap(), jacobian=True, **options)
        found = _logps_triton.forward(*inputs, LogitMap(), jacobian=True, tiling=tiling, **options)
        plain = _logps_triton.forward(*inputs, LogitMap(), jacobian=False, tiling=tiling, **options)
        assert exact.direction is not None and found.direction is not None
        logps = torch.maximum(_gap(found.logps, exact.logps), _gap(plain.logps, exact.logps))
        miss = (found.direction.float() - exact.direction.float()).norm(dim=1)
        return float(logps), float((miss / exact.direction.float().norm(dim=1)).max())


def _gap(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().max()
