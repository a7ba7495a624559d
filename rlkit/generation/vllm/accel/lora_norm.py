# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""One Triton kernel follows a layer with an adapter: its update, the residual and the norm."""

from __future__ import annotations

from torch import Tensor

from rlkit.runtime.triton import tl, triton

_MOST = 2**16
"""Most elements of B in the registers of one program."""


@triton.jit
def _kernel(
    out, residual, base, low, b, active, gain, epsilon, out_step, residual_step, base_step,
    low_step,
    WIDTH: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
    EARLY: tl.constexpr, launch_pdl: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    ranks = tl.arange(0, BLOCK_R)
    inside = columns < WIDTH
    in_rank = ranks < RANK
    kind = out.dtype.element_ty
    # Everything is asked for before anything is used.
    factors = tl.load(b + columns[:, None] * RANK + ranks[None, :],
                      mask=inside[:, None] & in_rank[None, :], other=0.0)  # fmt: skip
    gains = tl.load(gain + columns, mask=inside, other=0.0).to(tl.float32)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    inputs = tl.load(low + row * low_step + ranks, mask=in_rank, other=0.0).to(tl.float32)
    y = tl.load(base + row * base_step + columns, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(residual + row * residual_step + columns, mask=inside, other=0.0).to(tl.float32)
    on = tl.load(active + row)
    update = tl.sum(factors.to(tl.float32) * inputs[None, :], 1).to(kind).to(tl.float32)
    y = (y + tl.where(on != 0, update, 0.0)).to(kind).to(tl.float32)
    x = (x + y).to(kind)
    tl.store(residual + row * residual_step + columns, x, mask=inside)
    x = x.to(tl.float32)
    x = (x * tl.rsqrt(tl.sum(x * x, 0) / WIDTH + epsilon)).to(kind).to(tl.float32)
    tl.store(out + row * out_step + columns, (x * gains).to(kind), mask=inside)


def fits(width: int, rank: int) -> bool:
    """Tell whether `expand_norm` takes layers of `width` outputs with slots of `rank`."""
    return _elements(width, rank) <= _MOST


def expand_norm(
    out: Tensor, residual: Tensor, base: Tensor, low: Tensor, b: Tensor, active: Tensor,
    gain: Tensor, epsilon: float, *, early: bool,
) -> None:  # fmt: skip
    """Set residual += y and out = gain * residual / rms(residual), y = base + active * (low B^T).

    Results are rounded to the dtype of `out` wherever separate operations would round. RMSNorm is
    that of transformers (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4); its sums are float32.

    Args:
        out: The normed result (M, N). The last dimension of every tensor is dense.
        residual: The residual stream (M, N), changed in place.
        base: The layer's own output (M, N).
        low: A x (M, R).
        b: B (N, R).
        active: Whole numbers (>= M), 0 for rows without the adapter.
        gain: The weight of the norm (N).
        epsilon: Added to the mean square, > 0.
        early: The option of that name of `lora_kernels.ExpandTiling`.
    """
    num_rows, width = out.shape
    rank = b.shape[1]
    _kernel[(num_rows,)](
        out, residual, base, low, b, active, gain, epsilon, out.stride(0), residual.stride(0),
        base.stride(0), low.stride(0),
        WIDTH=width, RANK=rank, BLOCK=triton.next_power_of_2(width),
        BLOCK_R=triton.next_power_of_2(rank), EARLY=early, launch_pdl=early,
        num_warps=min(16, max(4, _elements(width, rank) // 4096)),
    )  # fmt: skip


def _elements(width: int, rank: int) -> int:
    return int(triton.next_power_of_2(width) * triton.next_power_of_2(rank))
