"""Gradient checkpointing: decoder layers keep their inputs and run again in the backward pass.

torch.utils.checkpoint has two ways. One calls Python for each tensor that a layer would have kept,
which costs small models more than the card takes to compute. The other loses the gradients of
tensors that a layer closes over, as it does over LoRA's. Here a layer says what it closes over, the
first run builds no graph, and nothing but the layer's input is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from rlkit.models.compat import compute_once, recomputable_layers, recompute_with

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rlkit.models.offload import Offload

Context = Callable[[], AbstractContextManager[object]]


class Trained(NamedTuple):
    """The tensors, beside its input, that a layer computes with and that take gradients."""

    tensors: tuple[Tensor, ...]
    again: Callable[[Sequence[Tensor]], AbstractContextManager[None]]
    """Inside, the layer computes with other tensors of these values, whatever else is active."""


class NamesInside:
    """This hook finds the names that lie inside a layer, for each layer of each forward pass."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._found: dict[str, tuple[str, ...]] = {}

    def __call__(self, layer: str) -> tuple[str, ...]:
        """Return the names inside `layer`, in their order."""
        if layer not in self._found:
            self._found[layer] = tuple(n for n in self._names if n.startswith(f"{layer}."))
        return self._found[layer]


class TrainsLayers(Protocol):
    """Something that knows what trains in a layer."""

    def trained_in(self, layer: str, /) -> Trained:
        """Return what trains in the layer of this name at the moment."""
        ...


@contextmanager
def recomputed(
    model: PreTrainedModel,
    tuning: TrainsLayers,
    *,
    again: Context = nullcontext,
    offload: Offload | None = None,
) -> Iterator[None]:
    """Let decoder layers called inside keep their inputs only, by `offload` if any, and run twice.

    The second time they run in `again()` and with what `tuning` had them compute with the first
    time. The result is not twice differentiable. This is set for one forward pass only, as
    transformers drops the cache of generation where a layer is to run again.

    Args:
        model: The model whose decoder layers run twice.
        tuning: Says what each layer computes with that takes gradients.
        again: A context for the second run, such as the packed attention.
        offload: Holds the layers' inputs in host memory; None = they stay on the device.

    Yields:
        Nothing; afterwards the layers run once again.
    """

    def recomputing(name: str) -> Callable[..., Tensor]:
        def run(layer: Callable[..., Tensor], states: Tensor, *constants: object) -> Tensor:
            trained = tuning.trained_in(name)
            again_by = _Again(lambda x: layer(x, *constants), trained, again, offload)
            out: Tensor = _Recomputed.apply(again_by, states, *trained.tensors)  # type: ignore[no-untyped-call]
            return out

        return run

    layers = recomputable_layers(model)
    for name, layer in layers.items():
        recompute_with(layer, recomputing(name))
    try:
        yield
    finally:
        for layer in layers.values():
            compute_once(layer)


class _Again(NamedTuple):
    """This is the way in which a layer runs, both times."""

    layer: Callable[[Tensor], Tensor]
    trained: Trained
    context: Context
    offload: Offload | None


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, again: _Again, states: Tensor, *_tensors: Tensor) -> Tensor:
        ctx.again = again
        if again.offload is None:
            ctx.save_for_backward(states)
        else:
            ctx.kept = again.offload.keep(states)
        return again.layer(states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layer, trained, context, offload = ctx.again
        states = ctx.saved_tensors[0] if offload is None else offload.fetch(ctx.kept)
        needed = ctx.needs_input_grad[1:]
        states = states.detach().requires_grad_(needed[0])
        # A leaf stays itself: it is what the layer finds in its module.
        tensors = [t if t.is_leaf else t.detach().requires_grad_() for t in trained.tensors]
        with torch.enable_grad(), context(), trained.again(tensors):
            # The edge alone: nobody needs the layer's output a second time.
            end = get_gradient_edge(layer(states))
        inputs = [states, *tensors]
        wanted = [tensor for tensor, is_needed in zip(inputs, needed, strict=True) if is_needed]
        found = iter(torch.autograd.grad(end, wanted, grad, allow_unused=True))
        return None, *(next(found) if is_needed else None for is_needed in needed)
