"""Weights in 8 bits are e4m3 with a power of two for each output channel.

The scale s of a row is the least power of two with max |w| / s <= 448, the largest number of e4m3.
Such a scale costs no precision, as e4m3 is a floating-point format itself. A product code * s has 4
significant bits, so float32, bfloat16 and float16 hold it exactly. All that compute with the same
codes compute with the same numbers. A scale is at least 2^-15, so that float16 reaches the
smallest code. Codes follow from the weight alone, and every device rounds them alike.

Source of the format: Micikevicius et al. 2022, FP8 formats for deep learning, arXiv:2209.05433.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST = 448.0
"""The largest number of e4m3."""
LEAST_EXPONENT = -15
"""Exponent of the smallest scale."""
_FORMAT = torch.float8_e4m3fn


class Fp8State(NamedTuple):
    """It belongs to codes (out, in) and makes numbers of them."""

    scale: Tensor
    """(out,) float32, powers of two."""
    dtype: torch.dtype
    """The dtype that the layer computes in."""


class Fp8Linear(nn.Linear):
    """A frozen linear layer whose weight is made by `fp8_weight`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + bias."""
        return product(x, self.weight, self.bias)


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes of a weight (out, in), as uint8, and the (out,) float32 scales of its rows.

    A row of zeros has the least scale. Raises ValueError for a weight that is not finite.
    """
    values = weight.float()
    largest = values.abs().amax(dim=1)
    if not bool(largest.isfinite().all()):
        raise ValueError("weights of a layer in 8 bits must be finite, got inf or NaN")
    # frexp: largest / 448 = m 2^e with m in [1/2, 1), which 2^e reaches, or 2^(e - 1) for m = 1/2.
    mantissa, exponent = torch.frexp(largest / LARGEST)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent).clamp(min=LEAST_EXPONENT)
    exponent = torch.where(largest == 0, LEAST_EXPONENT, exponent)
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    codes = (values / scale[:, None]).to(_FORMAT)
    return codes.view(torch.uint8), scale


def dequantise(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return code * scale, exactly, of codes (out, in) and scales (out,)."""
    if codes.is_cuda and kernels_read_codes(codes.device):
        from rlkit.models.fp8_kernel import values

        return values(codes, scale, dtype)
    return codes.view(_FORMAT).to(dtype).mul_(scale.to(dtype)[:, None])


def kernels_read_codes(device: torch.device) -> bool:
    """Return whether Triton converts e4m3 on a CUDA device; torch does on all of them."""
    return torch.cuda.get_device_capability(device) >= (8, 9)


def fp8_weight(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """Return a frozen parameter of `codes` that knows its scales; nothing is copied."""
    weight: Any = nn.Parameter(codes, requires_grad=False)
    weight.fp8_state = Fp8State(scale, dtype)
    found: nn.Parameter = weight
    return found


def is_fp8(weight: Tensor) -> bool:
    """Return whether `weight` was made by `fp8_weight`."""
    return hasattr(weight, "fp8_state")


def state_of(weight: Tensor) -> Fp8State:
    """Return the scales and the dtype of a weight that was made by `fp8_weight`."""
    state: Fp8State = weight.fp8_state  # type: ignore[attr-defined]
    return state


def dense(weight: Tensor) -> Tensor:
    """Return the numbers (out, in) of a weight that was made by `fp8_weight`."""
    state = state_of(weight)
    return dequantise(weight.data, state.scale, state.dtype)


def fp8_layer(linear: nn.Linear, weight: nn.Parameter) -> Fp8Linear:
    """Return the layer that takes the place of `linear`, with its bias."""
    layer = Fp8Linear(
        linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta"
    )
    layer.weight, layer.bias = weight, linear.bias
    return layer


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + bias; the gradient goes to x alone, and no dense weight waits for it."""
    out: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class _Product(torch.autograd.Function):
    """It keeps the codes for the backward pass, not what they stand for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, dense(weight).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ dense(ctx.weight).to(gradient.dtype), None, None


def fp8_bytes(num_outputs: int, num_inputs: int) -> int:
    """Return the bytes of a layer: one a weight, and a float32 scale a row."""
    return num_outputs * num_inputs + 4 * num_outputs
