"""Frozen weights in fewer bits are bitsandbytes' `Params4bit`, or e4m3 of `rlkit.models.fp8`.

bitsandbytes is imported where such a weight is used: other models do without it.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from rlkit.models import fp8


def is_four_bit(weight: Tensor) -> bool:
    """Return whether `weight` is a `Params4bit` of bitsandbytes."""
    return hasattr(weight, "quant_state")


def is_quantised(weight: Tensor) -> bool:
    """Return whether `weight` holds codes, not numbers in 16 or 32 bits."""
    return is_four_bit(weight) or fp8.is_fp8(weight)


def dense(weight: Tensor) -> Tensor:
    """Return the weight (out, in) that a layer computes with, dequantised if it is quantised."""
    if fp8.is_fp8(weight):
        return fp8.dense(weight)
    if not is_four_bit(weight):
        return weight
    from bitsandbytes.functional import dequantize_4bit

    values: Tensor = dequantize_4bit(weight.data, weight.quant_state)  # type: ignore[attr-defined]
    return values


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + bias."""
    if fp8.is_fp8(weight):
        return fp8.product(x, weight, bias)
    if not is_four_bit(weight):
        return F.linear(x, weight, bias)
    from bitsandbytes import matmul_4bit  # type: ignore[attr-defined,unused-ignore]

    out: Tensor = matmul_4bit(x, weight, bias=bias, quant_state=weight.quant_state)  # type: ignore[attr-defined]
    return out
