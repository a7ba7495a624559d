"""The parts of decoder layers that `rlkit.kernels.layers` computes, put in place of their modules.

Only modules of classes that are known by name and only on inputs that the kernels take: anything
else runs transformers' own code. Names, parameters and the state dict stay as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlkit.kernels.layers import rms_norm, rotary, swiglu, takes

_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
_MLPS = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")
_ATTENTIONS = ("LlamaAttention", "Qwen2Attention", "Qwen3Attention")
_PACKED = "rlkit_"
"""How the names of the attentions begin that take one packed row; others run as they are."""


def fuse(model: nn.Module) -> None:
    """Let the layers of `model` use the fused kernels where they can; idempotent."""
    for module in model.modules():
        name = type(module).__name__
        if "forward" in vars(module):
            continue
        # Weak: a module that holds itself would outlive its model, and an engine's weights with it.
        own, plain = partial(type(module).forward, weakref.proxy(module)), weakref.proxy(module)
        if name in _NORMS:
            module.forward = _norm(plain, own)
        elif name in _MLPS and isinstance(module.act_fn, SiLUActivation | nn.SiLU):
            module.forward = _mlp(plain, own)
        elif name in _ATTENTIONS:
            module.forward = _attention(plain, own)


def _norm(module: Any, own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:

    def forward(x: Tensor) -> Tensor:
        weight: Tensor = module.weight
        if not takes(x) or weight.dtype != x.dtype:
            return own(x)
        return rms_norm(x, weight, module.variance_epsilon)

    return forward


def _mlp(module: Any, own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:

    def forward(x: Tensor) -> Tensor:
        if not takes(x):
            return own(x)
        return module.down_proj(swiglu(module.gate_proj(x), module.up_proj(x)))  # type: ignore[no-any-return]

    return forward


def _attention(
    module: Any, own: Callable[..., tuple[Tensor, Tensor | None]]
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    normed = hasattr(module, "q_norm")
    window = getattr(module, "sliding_window", None)

    def forward(
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: object = None,
        **options: Any,  # transformers passes every layer's options on to the attention
    ) -> tuple[Tensor, Tensor | None]:
        x = hidden_states
        implementation = module.config._attn_implementation
        if not implementation.startswith(_PACKED) or past_key_values is not None or not takes(x):
            return own(
                hidden_states=x,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                **options,
            )
        q, k, v = (
            layer(x)[0].unflatten(-1, (-1, module.head_dim))
            for layer in (module.q_proj, module.k_proj, module.v_proj)
        )
        if normed:
            q, k = module.q_norm(q), module.k_norm(k)
        cos, sin = (table[0] for table in position_embeddings)
        q, k = rotary(q, cos, sin), rotary(k, cos, sin)
        attend: Any = ALL_ATTENTION_FUNCTIONS[implementation]
        out, weights = attend(
            module,
            *(part.transpose(0, 1)[None] for part in (q, k, v)),
            attention_mask,
            dropout=0.0,
            scaling=module.scaling,
            sliding_window=window,
            **options,
        )
        return module.o_proj(out.flatten(2)), weights

    return forward
