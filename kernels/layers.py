"""Compute what lies between the matmuls of a decoder layer, each in one pass over memory.

They are as exact as transformers' own code, which needs six kernels and float32 copies for a norm.
They serve models in 16 bits on a GPU; `takes` says whether a tensor fits. On the meta device they
allocate what they would on a GPU, so that a memory plan can be made from them.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 2048
_MAX_ROW = 2**14
"""Longest row of a norm: one program holds it in registers."""
_SUM_ROWS, _SUM_TILES = 32, 8
"""Rows that one program of a norm's weight gradient adds up: at once, and how often."""


def power_of_two(number: int) -> int:
    """Return the least power of two that is not smaller than `number`."""
    return 1 << (number - 1).bit_length()


def takes(x: Tensor) -> bool:
    """Tell if the kernels of this module take `x`; cards before 8.0 have no bfloat16."""
    if x.dtype not in (torch.bfloat16, torch.float16) or x.shape[-1] > _MAX_ROW:
        return False
    if x.dtype == torch.bfloat16 and x.is_cuda:
        return _has_bfloat16(x.device)
    return x.is_cuda or x.is_meta


@cache
def _has_bfloat16(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return weight * x / sqrt(mean(x^2) + eps) on the last axis: float32, rounded before `weight`.

    Differentiable in `x`, and in `weight` when it requires a gradient, which is summed in float32.
    Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
    """
    out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up; differentiable. Shazeer 2020, arXiv:2002.05202, eq. 6."""
    out: Tensor = _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


def swiglu_joined(gate_and_up: Tensor) -> Tensor:
    """Return `swiglu` (..., F) of gate and up side by side, (..., 2 F)."""
    out: Tensor = _SwiGLUJoined.apply(gate_and_up)  # type: ignore[no-untyped-call]
    return out


class Uses(NamedTuple):
    """The places where `rows_of` uses each row."""

    order: Tensor
    """(K,) the places of `index`, sorted by the row that they hold."""
    starts: Tensor
    """(T + 1,) the uses of row t are order[starts[t] : starts[t + 1]]."""


def uses_of(index: Tensor, num_rows: int) -> Uses:
    """Return the uses of `index` (K,) in `num_rows` rows, for all gathers; never wait for a GPU."""
    rows, order = index.sort(stable=True)
    numbers = torch.arange(num_rows + 1, device=index.device)
    return Uses(order, torch.searchsorted(rows, numbers))


def rows_of(x: Tensor, index: Tensor, uses: Uses) -> Tensor:
    """Return x[index] on the first axis; the gradient is a float32 sum, always in the same order.

    Autograd's own gradient of a gather adds 16-bit numbers in any order, or sorts in every call.
    """
    out: Tensor = _Rows.apply(x, index, *uses)  # type: ignore[no-untyped-call]
    return out


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, order: Tensor, starts: Tensor) -> Tensor:
        ctx.save_for_backward(order, starts)
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        from rlkit.kernels import _layers_triton as kernels

        order, starts = ctx.saved_tensors
        num_rows, width = len(starts) - 1, grad[0].numel()
        out = grad.new_empty(num_rows, *grad.shape[1:])
        kernels.sum_uses[(num_rows,)](
            grad.contiguous(), order, starts, out, WIDTH=width, BLOCK=power_of_two(width)
        )
        return out, None, None, None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        rstd = x.new_empty(x.shape[:-1], dtype=torch.float32)
        if not x.is_meta:
            kernels, grid, shape = _norm_launch(x)
            kernels.rms_norm_forward[grid](x, weight, y, rstd, rstd.numel(), eps, **shape)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, rstd = ctx.saved_tensors
        dx, dy = torch.empty_like(x), dy.contiguous()
        if not x.is_meta:
            kernels, grid, shape = _norm_launch(x)
            kernels.rms_norm_backward[grid](dy, x, weight, rstd, dx, rstd.numel(), **shape)
        dweight = _norm_weight_gradient(dy, x, rstd) if ctx.needs_input_grad[1] else None
        return dx, dweight, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return _swiglu(gate, up, torch.empty_like(gate), skip=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        _swiglu_gradients(dy, gate, up, dgate, dup, skip=0)
        return dgate, dup


class _SwiGLUJoined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        both = both.contiguous()
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        return _swiglu(gate, up, both.new_empty(gate.shape), skip=gate.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        grad = torch.empty_like(both)
        halves = (*both.chunk(2, dim=-1), *grad.chunk(2, dim=-1))
        _swiglu_gradients(dy, *halves, skip=dy.shape[-1])
        return grad


def _swiglu(gate: Tensor, up: Tensor, y: Tensor, *, skip: int) -> Tensor:
    """Fill `y`, contiguous; between two rows of gate, and of up, lie `skip` numbers.

    Args:
        gate: Gate projections (..., F).
        up: Up projections (..., F).
        y: The output (..., F).
        skip: Numbers of something else after each row of gate and of up.

    Returns:
        `y`.
    """
    if not y.is_meta:
        kernels, grid = _flat_launch(y)
        kernels.swiglu_forward[grid](
            gate, up, y, y.numel(), WIDTH=y.shape[-1], SKIP=skip, BLOCK=_BLOCK
        )
    return y


def _swiglu_gradients(
    dy: Tensor, gate: Tensor, up: Tensor, dgate: Tensor, dup: Tensor, *, skip: int
) -> None:
    if not dy.is_meta:
        kernels, grid = _flat_launch(dy)
        kernels.swiglu_backward[grid](
            dy.contiguous(), gate, up, dgate, dup, dy.numel(),
            WIDTH=dy.shape[-1], SKIP=skip, BLOCK=_BLOCK,
        )  # fmt: skip


def _norm_launch(x: Tensor) -> tuple[Any, tuple[int], dict[str, int]]:
    """Return the kernels, a grid of programs with some thousand numbers each, and their shape."""
    from rlkit.kernels import _layers_triton as kernels

    width = x.shape[-1]
    rows = max(1, _BLOCK // power_of_two(width))
    grid = (-(-(x.numel() // width) // rows),)
    shape = {"D": width, "BLOCK_D": power_of_two(width), "ROWS": rows}
    return kernels, grid, shape | {"num_warps": 8 if width > 4096 else 4}


def _norm_weight_gradient(dy: Tensor, x: Tensor, rstd: Tensor) -> Tensor:
    """Return the (D,) sum over the rows of dy x / rms, always in the same order."""
    width, num_rows = x.shape[-1], rstd.numel()
    num_parts = -(-num_rows // (_SUM_ROWS * _SUM_TILES))
    sums = rstd.new_empty(num_parts, width)
    if not x.is_meta:
        from rlkit.kernels import _layers_triton as kernels

        block = min(128, power_of_two(width))
        kernels.rms_norm_weight_backward[(num_parts, -(-width // block))](
            dy, x, rstd, sums, num_rows, D=width, BLOCK_D=block, ROWS=_SUM_ROWS, TILES=_SUM_TILES
        )
    return sums.sum(0).to(x.dtype)


def _flat_launch(x: Tensor) -> tuple[Any, tuple[int]]:
    from rlkit.kernels import _layers_triton as kernels

    return kernels, (-(-x.numel() // _BLOCK),)
