"""Gradient checkpointing: decoder layers keep their inputs and run again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Context = Callable[[], AbstractContextManager[object]]


@contextmanager
def recomputed(
    model: PreTrainedModel, *, again: Context, keeping: Context = nullcontext
) -> Iterator[None]:
    """Decoder layers called inside keep their inputs only, in `keeping()`, and run twice.

    They run the second time in `again()`, made when they run the first time. Set for one forward
    pass instead of by `gradient_checkpointing_enable`: transformers looks at these attributes in
    every call, drops the cache of generation where they are set, and wants the whole model, dropout
    included, in training mode.
    """

    def run(layer: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        with keeping():
            out: Tensor = checkpoint(
                layer,
                *inputs,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: (nullcontext(), again()),
            )
        return out

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        layer.gradient_checkpointing = layer.training = True
        layer._gradient_checkpointing_func = run  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = False
