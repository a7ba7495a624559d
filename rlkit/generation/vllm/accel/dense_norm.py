"""Update by the adapter inside the RMSNorm that follows it: one launch less for o and down.

In vLLM's Llama, Qwen2 and Qwen3 the outputs of `o_proj` and `down_proj` go to a norm that adds the
residual, and nowhere else. There, `DenseLinear` hands over [W x, A x] as it is, wider than the
hidden states, and the norm's `forward` does the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rlkit.generation.vllm.accel.dense import DenseLinear

_KNOWN = {
    "LlamaModel": "LlamaDecoderLayer",
    "Qwen2Model": "Qwen2DecoderLayer",
    "Qwen3Model": "Qwen3DecoderLayer",
}
"""The layers of vLLM's stacks whose data flow is known."""
_CHILDREN = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


class NormAfter:
    """This replaces `forward` of the norm behind a layer."""

    def __init__(self, norm: Any, layer: DenseLinear) -> None:
        self._original = norm.forward
        self._norm = norm
        self.layer = layer

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Any:
        # Only the width says that the layer has left its update to the norm.
        if x.shape[-1] != self.layer.wide_size:
            return self._original(x) if residual is None else self._original(x, residual)
        if residual is None:
            raise RuntimeError("a norm behind a layer with an adapter must have a residual")
        return self.forward(x, residual)

    def forward(self, both: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Give the norm's output for [W x, A x], and the residual, updated in place."""
        from rlkit.generation.vllm.accel.lora_norm import expand_norm

        layer = self.layer
        out = torch.empty_like(residual)
        expand_norm(
            out,
            residual,
            both[:, : layer.num_outputs],
            both[:, layer.num_outputs :],
            layer.b,
            layer.rows.mask,
            self._norm.weight,
            self._norm.variance_epsilon,
            early=layer.early,
        )
        return out, residual


@torch.no_grad()
def install_norms(model: Any, layers: Mapping[str, DenseLinear]) -> int:
    """Let norms of `model` do the work of the `layers` before them; return how many do.

    The first of each kind is tried against float64. Raises ValueError, with nothing changed, when
    it is off by more than rounding.
    """
    from rlkit.generation.vllm.accel.lora_norm import fits

    behind = []
    for name, norm in _norms(model):
        layer = layers.get(name)
        if layer is None or layer.wide_size is None or not fits(layer.num_outputs, layer.rank):
            continue
        if norm.weight.shape == (layer.num_outputs,) and norm.weight.dtype is layer.b.dtype:
            behind.append((norm, NormAfter(norm, layer)))
    # One norm of each shape is tried; the factors are zero again afterwards.
    for after in {after.layer.a.shape: after for _, after in behind}.values():
        try:
            _try(after)
        finally:
            for tensor in (after.layer.a, after.layer.b, after.layer.rows.mask):
                tensor.zero_()
    # From here on the two halves depend on each other: the layer leaves its update to the norm.
    for norm, after in behind:
        norm.forward = after
        after.layer.deferred = True
    return len(behind)


def _norms(model: Any) -> Iterator[tuple[str, Any]]:
    """Pair the names of layers with the norm that alone reads them."""
    stack: Any = getattr(model, "model", None)
    watched: Any = getattr(stack, "aux_hidden_state_layers", ())
    if type(stack).__name__ not in _KNOWN or watched:
        return
    layers = [*stack.layers]
    if any(
        type(layer).__name__ != _KNOWN[type(stack).__name__]
        or dict(layer.named_children()).keys() != _CHILDREN
        for layer in layers
    ):
        return
    # The first norm of a layer adds the output of the layer before it to the residual.
    next_norms = [layer.input_layernorm for layer in layers[1:]] + [stack.norm]
    for n, (layer, next_norm) in enumerate(zip(layers, next_norms, strict=True)):
        for name, norm in (
            ("self_attn.o_proj", layer.post_attention_layernorm),
            ("mlp.down_proj", next_norm),
        ):
            plain = type(norm).__name__ == "RMSNorm" and norm.variance_size_override is None
            if plain and norm.has_weight:
                yield f"model.layers.{n}.{name}", norm


def _try(after: NormAfter) -> None:
    layer, norm = after.layer, after._norm
    x, active, bias = layer.random_inputs(37)
    residual = torch.randn(37, layer.num_outputs, generator=torch.Generator().manual_seed(1))
    residual = residual.to(layer.b)
    truth = residual.double() + layer.exact(x, active, bias)
    got, updated = after.forward(layer.both(x, bias), residual)
    scale = torch.rsqrt(truth.square().mean(1, keepdim=True) + norm.variance_epsilon)
    limit = max(4 * torch.finfo(layer.b.dtype).eps, 1e-5)
    for name, value, exact in (
        ("residual", updated, truth),
        ("norm", got, truth * scale * norm.weight.double()),
    ):
        error = float((value.double() - exact).abs().max() / exact.abs().max())
        if not error <= limit:
            raise ValueError(f"its own {name} within rounding, got {error:.1e} off")
