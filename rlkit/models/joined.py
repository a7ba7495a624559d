"""Compute frozen linear layers with one input as one product: q, k and v; gate and up.

Engines store their weights one behind the other: then it is one matmul, which reads the input once.
Else each layer writes its columns of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlkit.models import fp8
from rlkit.models.quantised import dense, is_quantised, linear

Projection = Callable[[Tensor], Tensor]
"""A function from one input to the outputs of several linear layers, side by side."""
Joins = Callable[[Mapping[str, nn.Module]], Projection | None]
"""Joins such layers, by name, into one function; returns None where that cannot be done."""


class Frozen(NamedTuple):
    """These weights of linear layers with one input have 16 or 32 bits, or are quantised."""

    weights: tuple[Tensor, ...]
    """(out, in) each."""
    biases: tuple[Tensor, ...]
    """One a layer, or none at all."""
    widths: list[int]
    """Outputs of each layer."""


def product(x: Tensor, frozen: Frozen) -> Tensor:
    """Return x [W_1; W_2; ...]^T + [b_1, b_2, ...], the layers' outputs side by side."""
    whole = adjoined(frozen.weights)
    if whole is not None:
        return linear(x, whole, _joined(frozen.biases) if frozen.biases else None)
    if x.requires_grad and torch.is_grad_enabled():  # no gradient goes through `out=`
        biases = frozen.biases or (None,) * len(frozen.weights)
        parts = zip(frozen.weights, biases, strict=True)
        return torch.cat([linear(x, weight, bias) for weight, bias in parts], dim=-1)
    out = x.new_empty((*x.shape[:-1], sum(frozen.widths)))
    rows = x.flatten(0, -2)
    columns = torch.split(out.view(len(rows), -1), frozen.widths, dim=1)
    for i, (part, weight) in enumerate(zip(columns, frozen.weights, strict=True)):
        transposed = dense(weight).t().to(x.dtype)
        if frozen.biases:
            torch.addmm(frozen.biases[i], rows, transposed, out=part)
        else:
            torch.mm(rows, transposed, out=part)
        del transposed  # a copy of a quantised weight, before the next one is made
    return out


def input_gradient(rows: Tensor, frozen: Frozen) -> Tensor:
    """Return the (T, in) gradient of `product`'s input, from that of its result (T, outputs)."""
    whole = adjoined(frozen.weights)
    if whole is not None:
        return rows @ dense(whole).to(rows.dtype)
    parts = torch.split(rows, frozen.widths, dim=1)
    total: Tensor = parts[0] @ dense(frozen.weights[0]).to(rows.dtype)
    for part, weight in zip(parts[1:], frozen.weights[1:], strict=True):
        total.addmm_(part, dense(weight).to(rows.dtype))
    return total


def adjoined(parts: Sequence[Tensor]) -> Tensor | None:
    """Return `parts` along the first axis as one view of their memory; None if they lie apart."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if all(map(fp8.is_fp8, parts)):
        states = [fp8.state_of(part) for part in parts]
        codes = _side_by_side([part.data for part in parts])
        scale = _side_by_side([state.scale for state in states])
        if codes is None or scale is None:
            return None
        return fp8.fp8_weight(codes, scale, states[0].dtype)
    return _side_by_side(parts)


def _side_by_side(parts: Sequence[Tensor]) -> Tensor | None:
    first = parts[0]
    end = first.data_ptr()
    for part in parts:
        if part.data_ptr() != end or is_quantised(part) or not part.is_contiguous():
            return None
        end += part.nbytes
    # Allocators put one tensor's memory behind another's: a view stays within one.
    owner = first.untyped_storage().data_ptr()
    if any(part.untyped_storage().data_ptr() != owner for part in parts[1:]):
        return None
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())


def _joined(parts: Sequence[Tensor]) -> Tensor:
    whole = adjoined(parts)
    return torch.cat(list(parts)) if whole is None else whole
