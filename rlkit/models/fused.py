"""Put what `rlkit.kernels.layers` computes in place of the modules of decoder layers.

This is done in classes that are known by name, and on inputs that the kernels take. Anything else
runs transformers' own code. Names, parameters and the state dict stay as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from rlkit.kernels.layers import rms_norm, swiglu, swiglu_joined, takes
from rlkit.kernels.rotary import Tables, rotary, split_heads
from rlkit.models.compat import (
    Known,
    attention_function,
    attention_implementation,
    cache_of,
    known_kind,
    with_cache,
)
from rlkit.models.joined import Joins, Projection

_PACKED = "rlkit_"
"""How the names of the attentions begin that take one packed row; others run as they are."""
QKV = ("q_proj", "k_proj", "v_proj")
GATE_UP = ("gate_proj", "up_proj")
"""Layers with one input, as they are named in these modules."""


def fuse(model: PreTrainedModel, *, join: Joins | None = None) -> None:
    """Let the layers of `model` use the fused kernels where they can; idempotent.

    `join`: makes one product of q, k and v and one of gate and up where it can.
    """
    embedding: Any = model.get_input_embeddings()
    if not takes(embedding.weight):
        join = None  # who runs transformers' own code calls each layer by itself
    for name, module in model.named_modules():
        kind = known_kind(module)
        if kind is None or "forward" in vars(module):
            continue
        # The instance's `forward` goes before the class's; nothing else of the module changes. The
        # references are weak: a module that holds itself would outlive its model, and an engine's
        # weights with it.
        own, plain = partial(type(module).forward, weakref.proxy(module)), weakref.proxy(module)
        if kind is Known.norm:
            module.forward = _norm(plain, own)
        elif kind is Known.mlp:
            module.forward = _mlp(plain, own, _joined(join, name, module, GATE_UP))
        else:
            module.forward = _attention(plain, own, _joined(join, name, module, QKV))


def _joined(
    join: Joins | None, name: str, module: nn.Module, parts: tuple[str, ...]
) -> Projection | None:
    return None if join is None else join({f"{name}.{p}": getattr(module, p) for p in parts})


def _norm(module: Any, own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:

    def forward(x: Tensor) -> Tensor:
        weight: Tensor = module.weight
        if not takes(x) or weight.dtype != x.dtype:
            return own(x)
        return rms_norm(x, weight, module.variance_epsilon)

    return forward


def _mlp(
    module: Any, own: Callable[[Tensor], Tensor], gate_and_up: Projection | None
) -> Callable[[Tensor], Tensor]:

    def forward(x: Tensor) -> Tensor:
        if not takes(x):
            return own(x)
        if gate_and_up is None:
            inner = swiglu(module.gate_proj(x), module.up_proj(x))
        else:
            inner = swiglu_joined(gate_and_up(x))
        return module.down_proj(inner)  # type: ignore[no-any-return]

    return forward


def _attention(
    module: Any,
    own: Callable[..., tuple[Tensor, Tensor | None]],
    qkv: Projection | None,
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    window = getattr(module, "sliding_window", None)

    def forward(
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **options: Any,  # the cache, and every layer's options, which go on to the attention
    ) -> tuple[Tensor, Tensor | None]:
        x, cache = hidden_states, cache_of(options)
        options = with_cache(module, options, cache)
        implementation = attention_implementation(module.config)
        if not implementation.startswith(_PACKED) or cache is not None or not takes(x):
            return own(
                hidden_states=x,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                **options,
            )
        # The tables are squeezed, as the gradient of x[0] is a row of zeros that is written to.
        tables = position_embeddings[0].squeeze(0), position_embeddings[1].squeeze(0)
        out, weights = attention_function(implementation)(
            module,
            *(part.transpose(0, 1).unsqueeze(0) for part in _heads(module, x, tables, qkv)),
            attention_mask,
            dropout=0.0,
            scaling=module.scaling,
            sliding_window=window,
            **options,
        )
        return module.o_proj(out.flatten(2)), weights

    return forward


def _heads(
    module: Any, x: Tensor, tables: Tables, qkv: Projection | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values (T, heads, d) of one row (1, T, D)."""
    width, normed = module.head_dim, hasattr(module, "q_norm")
    if qkv is not None:
        rows, num_kv = qkv(x.squeeze(0)), module.config.num_key_value_heads
        q, k, v = split_heads(rows, None if normed else tables, num_kv=num_kv, width=width)
    else:
        q, k, v = (getattr(module, name)(x).squeeze(0).unflatten(-1, (-1, width)) for name in QKV)
    if normed:
        q, k = module.q_norm(q), module.k_norm(k)
    if normed or qkv is None:
        q, k = rotary(q, *tables), rotary(k, *tables)
    return q, k, v
