"""This is the head of a language model: map from products to logits, checks and matmuls."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class LogitMap(NamedTuple):
    """logits = softcap(logit_scale (h W^T + bias)) / temperature, softcap(x) = c tanh(x / c).

    This is the order of the models in transformers. The head's bias belongs to its Linear layer.
    Cohere multiplies and Granite divides that layer's output by a constant, and Gemma-2 caps it.
    The sampler divides by the temperature last.
    """

    temperature: float = 1.0
    logit_scale: float = 1.0
    softcap: float | None = None
    bias: Tensor | None = None

    def apply_(self, product: Tensor) -> Tensor:
        """Turn h W^T (..., V) into logits, in place."""
        if self.bias is not None:
            product.add_(self.bias)
        return self._scale_(product)

    def slope(self, logits: Tensor) -> Tensor | None:
        """Return d logits / d product at `logits`, divided by `gain`; None where it is 1."""
        if self.softcap is None:
            return None
        return (logits * (self.temperature / self.softcap)).square_().neg_().add_(1.0)

    @property
    def gain(self) -> float:
        """Return d logits / d product where the softcap is inactive."""
        return self.logit_scale / self.temperature

    def _scale_(self, x: Tensor) -> Tensor:
        if self.softcap is None:
            return x if self.gain == 1.0 else x.mul_(self.gain)
        x.mul_(self.logit_scale / self.softcap).tanh_()
        return x.mul_(self.softcap / self.temperature)


def working(tensor: Tensor) -> Tensor:
    """Return `tensor` in the dtype of its products: CPUs get float32 for 16-bit inputs.

    A CPU matmul of bfloat16 rounds its result to bfloat16, 0.1 nat on real logits.
    """
    return tensor.float() if not tensor.is_cuda and tensor.itemsize == 2 else tensor


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b from wide accumulators: float32 for 16-bit CUDA inputs, else their dtype."""
    if not (a.is_cuda and a.itemsize == 2):
        return a @ b
    if not _widens(a.device, a.dtype):
        return _matmul_in_float32(a, b)
    # cuBLAS takes a kernel three times as slow for a sum over a number of terms like 50257.
    even = a.shape[1] // 8 * 8
    product = torch.mm(a[:, :even], b[:even], out_dtype=torch.float32)
    if even < a.shape[1]:
        add_matmul_(product, a[:, even:], b[even:])
    return product


def add_matmul_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to a float32 total; 16-bit inputs are multiplied and summed in float32."""
    if not (a.is_cuda and a.itemsize == 2):
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
    elif _widens(a.device, a.dtype):
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.add_(_matmul_in_float32(a, b))


@cache
def _widens(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell if torch multiplies 16-bit matrices into float32 here; bfloat16 needs 8.0 or newer.

    The question costs one small product, so it is asked once for a device and dtype.
    """
    a = torch.ones(16, 16, device=device, dtype=dtype)
    try:
        product = torch.mm(a, a, out_dtype=torch.float32)
    except (RuntimeError, TypeError):  # TypeError: a torch that lacks the argument
        return False
    return product.dtype == torch.float32


_SLAB = 2**24
"""Numbers of `b` that `_matmul_in_float32` copies at a time."""


def _matmul_in_float32(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b by float32 copies, with as many columns of b at a time as keep them small."""
    product = a.new_empty(a.shape[0], b.shape[1], dtype=torch.float32)
    wide = a.float()
    step = max(1, _SLAB // max(1, b.shape[0]))
    for start in range(0, b.shape[1], step):
        columns = slice(start, start + step)
        product[:, columns] = wide @ b[:, columns].float()
    return product


def check_head(hidden: Tensor, weight: Tensor, logit_map: LogitMap) -> None:
    """Raise ValueError, naming the argument, unless hidden (N, D) and weight (V, D) fit."""
    if hidden.ndim != 2:
        raise ValueError(f"hidden must have shape (N, D), got {tuple(hidden.shape)}")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1]:
        raise ValueError(
            f"weight must have shape (V, D) with D = {hidden.shape[1]}, got {tuple(weight.shape)}"
        )
    if weight.shape[0] < 2:
        raise ValueError(f"weight must have at least 2 rows (words), got {weight.shape[0]}")
    if hidden.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"hidden must be float16, bfloat16, float32 or float64: {hidden.dtype}")
    if weight.dtype != hidden.dtype:
        raise ValueError(f"weight must have hidden's dtype {hidden.dtype}, got {weight.dtype}")
    if weight.device != hidden.device:
        raise ValueError(f"weight must be on hidden's device {hidden.device}, got {weight.device}")
    _check_map(logit_map, weight)


def _check_map(logit_map: LogitMap, weight: Tensor) -> None:
    temperature, logit_scale, softcap, bias = logit_map
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and > 0, got {temperature}")
    if not math.isfinite(logit_scale) or logit_scale == 0:
        raise ValueError(f"logit_scale must be finite and not 0, got {logit_scale}")
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        raise ValueError(f"softcap must be None or finite and > 0, got {softcap}")
    if bias is None:
        return
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if not bias.is_floating_point():
        raise ValueError(f"bias must be floating point, got {bias.dtype}")
    if bias.device != weight.device:
        raise ValueError(f"bias must be on weight's device {weight.device}, got {bias.device}")


def check_targets(targets: Tensor, hidden: Tensor) -> None:
    """Raise ValueError unless targets are N integers on hidden's device; the range comes later."""
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets must have shape ({hidden.shape[0]},): {tuple(targets.shape)}")
    if targets.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"targets must be int64 or int32, got {targets.dtype}")
    if targets.device != hidden.device:
        raise ValueError(
            f"targets must be on hidden's device {hidden.device}, got {targets.device}"
        )


def check_range(low: int, high: int, vocab_size: int) -> None:
    """Raise ValueError unless the smallest and largest target are word ids."""
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"targets must be in [0, {vocab_size}), got {wrong}")


def check_range_now(targets: Tensor, vocab_size: int) -> None:
    """Apply `check_range` to all targets; waits for the device."""
    if len(targets):
        low, high = torch.stack(torch.aminmax(targets)).tolist()
        check_range(low, high, vocab_size)
