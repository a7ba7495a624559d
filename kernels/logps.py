"""`selected_logps` takes log-probs of words from hidden states, without the (N, V) logits.

docs/kernels.md holds the method, its derivation and measurements.
"""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlkit.kernels import _logps_torch, reference
from rlkit.kernels._logps_torch import Forward, power_of_two
from rlkit.kernels._row_gradient import with_row_gradient
from rlkit.kernels._self_test import fused_runs
from rlkit.kernels.lm_head import (
    LogitMap,
    check_head,
    check_range_now,
    check_targets,
)
from rlkit.kernels.tilings import Tiling
from rlkit.kernels.workspace import WORKSPACE_BYTES


class Impl(StrEnum):
    """The code that computes the logps. All agree to rounding."""

    auto = "auto"
    """`triton` for 16 bits on GPUs from capability 8.0 on that pass a self-test, else `torch`."""
    triton = "triton"
    """Fused kernels; 16 bits, D a multiple of 8, CUDA (or TRITON_INTERPRET=1)."""
    torch = "torch"
    """Chunked PyTorch; any device and dtype."""
    reference = "reference"
    """All logits in memory, differentiated by autograd; for tests."""


class EntropyMode(StrEnum):
    """The mode says if the entropy of the next-word distribution is returned as well."""

    none = "none"
    value = "value"
    """Without gradient: almost free."""
    differentiable = "differentiable"
    """With gradient: the logits are computed once more in the backward pass."""


class Logps(NamedTuple):
    """Per-row results, nats."""

    logps: Float[Tensor, " N"]
    """log p(target), <= 0, float32 (float64 for float64 inputs)."""
    entropy: Float[Tensor, " N"] | None
    """-sum_v p_v log p_v, in [0, log V]; None for `EntropyMode.none`."""


def selected_logps(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    *,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    bias: Float[Tensor, " V"] | None = None,
    entropy: EntropyMode = EntropyMode.none,
    impl: Impl = Impl.auto,
    workspace_bytes: int = WORKSPACE_BYTES,
    tiling: Tiling | None = None,
) -> Logps:
    """Return log softmax(z)[target] per row, z = softcap(logit_scale (h W^T + bias)) / temperature.

    softcap(x) = c tanh(x / c). Differentiable in `hidden`, and in `weight` and `bias` when these
    require gradients. With a frozen head the forward pass finds the gradient direction of every
    row: two matmuls of 2 N V D operations in all, N D numbers kept. The backward pass then only
    scales rows, and can run once. With a trainable head, or a differentiable entropy, the backward
    pass computes the logits again. Logps are bitwise the same in all cases.

    `hidden` and `weight` share dtype and device; products are accumulated in float32. Leave masked
    rows out beforehand: `rlkit.kernels.compact`. Source: docs/kernels.md; the frozen-head gradient
    follows from eq. 1 there.

    Args:
        hidden: Last hidden states.
        weight: The head.
        targets: Words, each in [0, V).
        temperature: Divides the logits; > 0.
        logit_scale: Multiplies the products; not 0.
        softcap: Bound of the logits before the temperature; None means no bound.
        bias: Added to the products.
        entropy: Whether the entropies are returned, and differentiable.
        impl: Which code computes it.
        workspace_bytes: Bound on temporary memory.
        tiling: Forces a cut of the fused kernels, for tests and benchmarks; None means the card's.

    Returns:
        Logps, and entropies where they were asked for.

    Raises:
        ValueError: Where a shape, dtype, device or range does not fit; it names the argument.
    """
    logit_map = LogitMap(temperature, logit_scale, softcap, bias)
    check_head(hidden, weight, logit_map)
    check_targets(targets, hidden)
    if workspace_bytes <= 0:
        raise ValueError(f"workspace_bytes must be > 0, got {workspace_bytes}")
    if tiling is not None and impl not in (Impl.auto, Impl.triton):
        raise ValueError(f"tiling must be None unless impl is auto or triton, got {tiling}")
    if impl == Impl.auto:
        impl = _choose(hidden) if tiling is None else Impl.triton
    if impl == Impl.reference:
        check_range_now(targets, weight.shape[0])
        logps, h = reference.selected_logps(hidden, weight, targets, logit_map)
        kept = {EntropyMode.none: None, EntropyMode.value: h.detach()}
        return Logps(logps, kept.get(entropy, h))
    call = _LogpsCall(logit_map, impl, entropy != EntropyMode.none, workspace_bytes, tiling)
    learns_head = weight.requires_grad or (bias is not None and bias.requires_grad)
    learns_entropy = entropy == EntropyMode.differentiable and hidden.requires_grad
    if not torch.is_grad_enabled() or not (learns_head or hidden.requires_grad):
        result = call.forward(hidden, weight, targets, jacobian=False)
        return Logps(result.logps, result.entropy)
    if not (learns_head or learns_entropy):
        result = call.forward(hidden, weight, targets, jacobian=True)
        assert result.direction is not None
        factor = power_of_two(result.doubt)
        logps = with_row_gradient(hidden, result.logps, factor, result.direction)
        return Logps(logps, result.entropy)
    function: Any = _TwoPassLogps
    logps, h = function.apply(hidden, weight, bias, targets, call)
    return Logps(logps, h.detach() if entropy == EntropyMode.value else h)


def _choose(hidden: Tensor) -> Impl:
    if not hidden.is_cuda or hidden.itemsize != 2 or hidden.shape[1] % 8:
        return Impl.torch
    return Impl.triton if fused_runs(hidden.device, hidden.dtype) else Impl.torch


class _LogpsCall(NamedTuple):
    """The arguments of a call that are not differentiated, except the bias, which rides along."""

    logit_map: LogitMap
    impl: Impl
    entropy: bool
    workspace_bytes: int
    tiling: Tiling | None

    def forward(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, *, jacobian: bool
    ) -> Forward:
        forward: Any = _logps_torch.forward
        if self.impl == Impl.triton:
            from rlkit.kernels import _logps_triton

            forward = partial(_logps_triton.forward, tiling=self.tiling)
        device: Any = torch.cuda.device_of  # Triton launches on the current device
        with torch.no_grad(), device(hidden):
            found: Forward = forward(
                hidden,
                weight,
                targets,
                self.logit_map,
                entropy=self.entropy,
                jacobian=jacobian,
                workspace_bytes=self.workspace_bytes,
            )
        return found


class _TwoPassLogps(torch.autograd.Function):
    """This keeps the inputs and computes the logits a second time in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        call: _LogpsCall,
    ) -> tuple[Tensor, Tensor | None]:
        result = call.forward(hidden, weight, targets, jacobian=False)
        ctx.save_for_backward(
            hidden, weight, bias, targets, result.logps, result.doubt, result.entropy
        )
        ctx.call = call
        ctx.set_materialize_grads(False)
        return result.logps, result.entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logps: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, weight, bias, targets, logps, doubt, entropy = ctx.saved_tensors
        call: _LogpsCall = ctx.call
        run: Any = _logps_torch.backward
        if call.impl == Impl.triton:
            from rlkit.kernels import _logps_triton

            run = partial(_logps_triton.backward, tiling=call.tiling)
        grads = run(
            hidden,
            weight,
            targets,
            call.logit_map._replace(bias=bias),
            Forward(logps, entropy, doubt, None),
            torch.zeros_like(logps) if grad_logps is None else grad_logps,
            grad_entropy,
            needs=ctx.needs_input_grad[:3],
            workspace_bytes=call.workspace_bytes,
        )
        return grads.hidden, grads.weight, grads.bias, None, None
