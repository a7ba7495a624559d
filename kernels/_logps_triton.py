"""Fused `selected_logps` on GPUs from Ampere on: exponentials in the epilogue of the head's matmul.

The exponentials are anchored at the target: E_v = exp(z_v - z_y) with E_y = 0 needs no running
maximum, so one pass over the products suffices. bfloat16 has float32's exponents, so E goes
straight into a BLAS matmul. The kernels compute

    S = sum_v E_v, logps = -log1p(S), dlogps/dh = gain S/(1+S) (d_y W_y - sum_v E_v d_v W_v/S).

float16 ends at 2^16, so there every tile of a row is stored relative to its largest word. One pass
over E then brings the tiles of a row to a common power of two. Logps are sums in float32 and do not
need it. The backward pass of a float16 head that trains is the chunked one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlkit.kernels import _logps_kernels as kernels
from rlkit.kernels import _logps_torch
from rlkit.kernels._logps_launch import (
    LogpsChunk,
    Stored,
    Sums,
    aligned,
    anchor,
    check,
    chunk_rows,
    exponentials,
    multiprocessors,
    tiling_for,
    units,
    weighted_exponentials,
)
from rlkit.kernels._logps_torch import Forward, Grads, chunks
from rlkit.kernels.lm_head import LogitMap, add_matmul_, check_range, matmul, working
from rlkit.kernels.tilings import Tiling

_OVERFLOW = 2.0**100
"""Rows with S above it (a word 69 nats above the target) are done again by `_logps_torch`."""


def forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    logit_map: LogitMap,
    *,
    entropy: bool,
    jacobian: bool,
    workspace_bytes: int,
    tiling: Tiling | None = None,
) -> Forward:
    """Do what `_logps_torch.forward` does, for bfloat16 and float16.

    Args:
        hidden: Hidden states (N, D), D a multiple of 8.
        weight: The head (V, D).
        targets: Words (N,); checked against [0, V) after the kernels have run.
        logit_map: The map from products to logits.
        entropy: Whether the entropies are wanted.
        jacobian: Whether the directions of dlogps/dh are wanted.
        workspace_bytes: Bound on temporary memory.
        tiling: The cut of the kernel; None means the card's own.

    Returns:
        The results per row.

    Raises:
        ValueError: Where the inputs or the card do not fit, or a target is no word.
    """
    check(hidden)
    plan = tiling_for(hidden.device) if tiling is None else tiling
    hidden, weight = aligned(hidden), aligned(weight)
    total = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    moment = torch.empty_like(total) if entropy else None
    direction = torch.empty_like(hidden) if jacobian else None
    safe = targets.clamp(
        0, len(weight) - 1
    ).contiguous()  # the kernels read these words before the verdict
    verdict = None
    step = _step(weight, plan, store=jacobian, workspace_bytes=workspace_bytes)
    for rows in chunks(len(hidden), 1, step):
        chunk = anchor(hidden[rows], weight, safe[rows], logit_map, plan)
        sums = Sums(total[rows], None if moment is None else moment[rows])
        stored = exponentials(chunk, sums, store=jacobian)
        if rows.stop == len(hidden):
            verdict = _Verdict(targets, total)
        if stored is not None and direction is not None:
            _directions(chunk, sums.total, stored, direction[rows])
        del stored  # before the next chunk's is allocated
    others = torch.log1p(total)
    out = Forward(
        logps=-others,
        entropy=None if moment is None else others - math.log(2) * (moment / (1 + total)),
        doubt=total / (1 + total),
        direction=direction,
    )
    if verdict is not None:
        low, high, fits = verdict.wait()
        check_range(low, high, len(weight))
        if not fits:
            _redo_overflows(hidden, weight, targets, logit_map, out, total, workspace_bytes)
    return out


def _step(weight: Tensor, plan: Tiling, *, store: bool, workspace_bytes: int) -> int:
    count = multiprocessors(weight.device)
    return chunk_rows(
        weight, plan, multiprocessors=count, store=store, workspace_bytes=workspace_bytes
    )


class _Verdict:
    """The verdict says if all targets are words and no row overflowed; its copy does not wait.

    It is asked for before the last chunk's matmul and read after that was queued. So the device has
    work left while the host decides.
    """

    def __init__(self, targets: Tensor, total: Tensor) -> None:
        low, high = torch.aminmax(targets)
        fits = (total < _OVERFLOW).all()
        self._values = torch.stack([low, high, fits.to(low.dtype)]).to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if targets.is_cuda else None  # type: ignore[no-untyped-call]
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> tuple[int, int, bool]:
        """Return (smallest target, largest target, no row overflowed)."""
        if self._copied is not None:
            self._copied.synchronize()
        low, high, fits = self._values.tolist()
        return low, high, bool(fits)


def _directions(chunk: LogpsChunk, total: Tensor, stored: Stored, out: Tensor) -> None:
    """Return the gradient directions of a chunk, as in `_logps_torch.Forward`."""
    weight, logit_map = chunk.weight, chunk.logit_map
    product = matmul(working(stored.e), working(weight))
    scales = torch.frexp(total / (1 + total)).mantissa * logit_map.gain
    cap, _ = units(logit_map)
    levels = total if stored.levels is None else stored.levels
    kernels.directions[(len(out),)](
        total, chunk.anchors, scales, levels, product, weight, chunk.targets, out,
        weight.stride(0), out.stride(0), out.shape[1], cap,
        SOFTCAP=logit_map.softcap is not None, SHIFTED=stored.levels is not None, BLOCK_D=1024,
        num_warps=4,
    )  # fmt: skip


def _redo_overflows(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    logit_map: LogitMap,
    out: Forward,
    total: Tensor,
    workspace_bytes: int,
) -> None:
    """Redo rows with so unlikely a target that exponentials anchored at it overflow; also NaNs."""
    index = (~(total < _OVERFLOW)).nonzero().squeeze(1)
    again = _logps_torch.forward(
        hidden[index],
        weight,
        targets[index],
        logit_map,
        entropy=out.entropy is not None,
        jacobian=out.direction is not None,
        workspace_bytes=workspace_bytes,
    )
    for whole, part in zip(out, again, strict=True):
        if whole is not None and part is not None:
            whole[index] = part


def backward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    logit_map: LogitMap,
    result: Forward,
    grad_logps: Tensor,
    grad_entropy: Tensor | None,
    *,
    needs: tuple[bool, bool, bool],
    workspace_bytes: int,
    tiling: Tiling | None = None,
) -> Grads:
    """Do what `_logps_torch.backward` does: d loss / d z is E (alpha + beta log2 E) for others.

    p_v = p_y E_v and log p_v = log E_v + logps, so that alpha = -p_y (g + g_H (logps + H)) and
    beta = -p_y g_H log 2. Rows that overflow, and float16, take the chunked path.

    Args:
        hidden: Hidden states (N, D).
        weight: The head (V, D).
        targets: Words (N,), each in [0, V).
        logit_map: The map from products to logits.
        result: What `forward` returned.
        grad_logps: Upstream gradients of the logps (N,).
        grad_entropy: Upstream gradients of the entropies (N,), or None.
        needs: Whether hidden, weight and bias need gradients.
        workspace_bytes: Bound on temporary memory.
        tiling: The cut of the kernel; None means the card's own.

    Returns:
        The gradients in the inputs' dtypes.
    """
    fits = hidden.dtype == torch.bfloat16 and (result.logps > -math.log(_OVERFLOW)).all()
    if not bool(fits):
        return _logps_torch.backward(
            hidden,
            weight,
            targets,
            logit_map,
            result,
            grad_logps,
            grad_entropy,
            needs=needs,
            workspace_bytes=workspace_bytes,
        )
    plan = tiling_for(hidden.device) if tiling is None else tiling
    h, w, targets = aligned(hidden), aligned(weight), targets.contiguous()
    alpha, beta, dz_y = _row_weights(result, grad_logps, grad_entropy)
    out = Grads(
        torch.empty_like(hidden) if needs[0] else None,
        torch.zeros_like(weight, dtype=torch.float32) if needs[1] else None,
        torch.zeros(len(weight), device=weight.device) if needs[2] else None,
    )
    step = _step(w, plan, store=True, workspace_bytes=workspace_bytes)
    for rows in chunks(len(h), 1, step):
        chunk = anchor(h[rows], w, targets[rows], logit_map, plan)
        dz = weighted_exponentials(chunk, alpha[rows], beta[rows])
        at_target = dz_y[rows, None] * _target_slopes(chunk)
        _add_grads(chunk, dz, at_target, rows, out)
        del dz  # before the next chunk's is allocated
    grad_bias = out.bias
    if out.weight is not None:
        out.weight.mul_(logit_map.gain)
    if grad_bias is not None and logit_map.bias is not None:
        grad_bias = (grad_bias * logit_map.gain).to(logit_map.bias.dtype)
    return Grads(out.hidden, None if out.weight is None else out.weight.to(w.dtype), grad_bias)


def _row_weights(
    result: Forward, grad_logps: Tensor, grad_entropy: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return alpha, beta and d loss / d z of the target."""
    p_y = result.logps.exp()
    dz_y = grad_logps * result.doubt
    if grad_entropy is None or result.entropy is None:
        return -p_y * grad_logps, torch.zeros_like(p_y), dz_y
    surprise = grad_entropy * (result.logps + result.entropy)
    beta = -math.log(2) * p_y * grad_entropy
    return -p_y * (grad_logps + surprise), beta, dz_y - p_y * surprise


def _target_slopes(chunk: LogpsChunk) -> Tensor:
    """Return the softcap's slope at each target (R, 1)."""
    slopes = chunk.logit_map.slope(chunk.anchors * math.log(2))
    return torch.ones_like(chunk.anchors)[:, None] if slopes is None else slopes[:, None]


def _add_grads(chunk: LogpsChunk, dz: Tensor, at_target: Tensor, rows: slice, out: Grads) -> None:
    """Add a chunk's gradients to `out`, those of weight and bias without the gain."""
    y = chunk.targets[:, None].long()
    if out.hidden is not None:
        product = matmul(working(dz), working(chunk.weight))
        product.addcmul_(at_target, chunk.weight[y.squeeze(1)].float())
        out.hidden[rows] = product.mul_(chunk.logit_map.gain)
    if out.weight is None and out.bias is None:
        return
    dz.scatter_(1, y, at_target.to(dz.dtype))
    if out.bias is not None:
        out.bias.add_(dz.sum(0, dtype=torch.float32))
    if out.weight is not None:
        add_matmul_(out.weight, dz.T, chunk.hidden)
