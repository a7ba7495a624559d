"""Linear layers on the meta device that take, for each product, the memory of quantised ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlkit.models.config import QuantKind
from rlkit.models.fp8 import fp8_layer, fp8_weight
from rlkit.models.quantize import quantisable

_PRODUCTS = (Tensor.__matmul__, Tensor.addmm_, Tensor.t)
"""A weight is used in these, beside a layer's own product."""


def dequantising(model: nn.Module, kind: QuantKind, dtype: torch.dtype) -> None:
    """Let the linear layers of a `model` on the meta device be dequantised for every product."""
    layers = quantisable(model) if kind is not QuantKind.none else {}
    if kind is QuantKind.nf4:
        for layer in layers.values():
            layer.weight = _InFourBits(layer.weight, requires_grad=False)
    elif kind is QuantKind.fp8:
        _into_fp8(model, layers, dtype)


def _into_fp8(model: nn.Module, layers: Mapping[str, nn.Linear], dtype: torch.dtype) -> None:
    """Put `layers` into 8 bits, one behind the other, as an engine's fused layers are.

    So layers that are joined are dequantised as a whole. Where no engine shares its weights, the
    parts lie apart, and take less.
    """
    shapes = [tuple(layer.weight.shape) for layer in layers.values()]
    codes = torch.empty(sum(rows * width for rows, width in shapes), dtype=torch.uint8)
    scale = torch.empty(sum(rows for rows, _ in shapes), dtype=torch.float32)
    parts = zip(
        torch.split(codes, [rows * width for rows, width in shapes]),
        torch.split(scale, [rows for rows, _ in shapes]),
        layers.items(),
        strict=True,
    )
    for of_codes, of_scale, (name, layer) in parts:
        weight = fp8_weight(of_codes.view(layer.weight.shape), of_scale, dtype)
        model.set_submodule(name, fp8_layer(layer, weight))


class _InFourBits(nn.Parameter):
    """Every product of this weight makes a 16-bit copy, for the time that it takes."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with torch.DisableTorchFunctionSubclass():
            if func is F.linear:
                x, weight, *bias = args
                out: Any = _Dequantised.apply(x, weight)  # type: ignore[no-untyped-call]
                return out + bias[0] if bias and bias[0] is not None else out
            if func in _PRODUCTS:
                args = [torch.empty_like(x) if isinstance(x, cls) else x for x in args]
            return func(*args, **(kwargs or {}))


class _Dequantised(torch.autograd.Function):
    """This is x W^T with a temporary copy of W in each direction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return F.linear(x, torch.empty_like(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ torch.empty_like(ctx.weight), None
