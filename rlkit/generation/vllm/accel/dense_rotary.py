"""Update by the adapter, rotation and cache entry of q, k and v at once: two launches less a layer.

In vLLM's Llama and Qwen2 the output of `qkv_proj` is split and rotated, and keys and values go to
the cache. Each takes a kernel of some 2 us. For the few rows of decoding one kernel does all three
behind the layer's product, and vLLM's attention then reads queries and cache as ever. Prompts, rows
without the adapter and profiling runs take vLLM's own way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rlkit.generation.vllm.accel.dense import WIDE_ROWS, DenseLinear

_log = logging.getLogger(__name__)
_KNOWN = ("LlamaAttention", "Qwen2Attention")
"""The attention layers of vLLM whose data flow is known."""
_CHILDREN = {"qkv_proj", "o_proj", "rotary_emb", "attn"}
_TRIED_ROWS, _TRIED_BLOCK = 37, 16


class RotaryAttention:
    """This replaces `forward` of an attention layer."""

    def __init__(self, attention: Any, layer: DenseLinear) -> None:
        self._original = attention.forward
        self._module, self.layer = attention, layer
        self.heads = attention.attn.num_heads, attention.attn.num_kv_heads
        self._failed = False
        self._table: Tensor = attention.rotary_emb.cos_sin_cache.to(layer.b)

    def __call__(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        is_decoding = self.layer.rows.some and len(hidden_states) <= WIDE_ROWS
        if is_decoding and hidden_states.ndim == 2 and not self._failed:
            try:
                found = self._cache()
                if found is not None:
                    return self._attend(positions, hidden_states, *found)
            except Exception as error:  # an unknown vLLM may fail in any way: its own way works
                self._failed = True
                _log.warning("vLLM's rotations are taken after all: %s", error)
        out: Tensor = self._original(positions=positions, hidden_states=hidden_states)
        return out

    def _attend(
        self, positions: Tensor, x: Tensor, cache: tuple[Tensor, Tensor], slots: Tensor
    ) -> Tensor:
        from vllm.model_executor.layers.attention.attention import unified_attention_with_output

        attn = self._module.attn
        query = self.forward(positions, x, cache, slots)
        query = query.view(len(query), *(attn.num_heads, attn.head_size))
        output = torch.empty_like(query)
        # Keys and values are in the cache, from where decoding reads them: these are not looked at.
        unified_attention_with_output(query, query, query, output, attn.layer_name)
        result: Tensor = self._module.o_proj(output.view(len(query), -1))[0]
        return result

    def forward(
        self, positions: Tensor, x: Tensor, cache: tuple[Tensor, Tensor], slots: Tensor
    ) -> Tensor:
        """Return the rotated queries of `x`; keys and values go to `cache`.

        Args:
            positions: Positions of the rows.
            x: The inputs of the layer (M, D).
            cache: Keys and values (blocks, block size, H', d).
            slots: The place of each row in it.

        Returns:
            Queries (M, H d).
        """
        from rlkit.generation.vllm.accel.lora_kernels import tiling
        from rlkit.generation.vllm.accel.rotary_kernel import expand_rotate_store

        layer = self.layer
        both = layer.both(x, layer.wide_bias)
        out = both.new_empty(len(x), self.heads[0] * cache[0].shape[-1])
        expand_rotate_store(
            out,
            cache,
            both[:, : layer.num_outputs],
            both[:, layer.num_outputs :],
            layer.b,
            layer.rows.mask,
            positions,
            self._table,
            slots,
            self.heads,
            tiling(len(x), layer.widths, early=layer.early),
        )
        return out

    def _cache(self) -> tuple[tuple[Tensor, Tensor], Tensor] | None:
        """Return keys, values and slots of the batch under way; None where it has none."""
        from vllm.model_executor.layers.attention.attention import get_attention_context

        metadata, _, cache, slots = get_attention_context(self._module.attn.layer_name)
        if metadata is None or slots is None or cache.ndim != 5 or cache.shape[1] != 2:
            return None
        keys, values = cache.unbind(1)
        if keys.dtype is not self.layer.b.dtype or keys.stride(-1) != 1:
            return None
        return (keys, values), slots


@torch.no_grad()
def install_rotary(model: Any, layers: Mapping[str, DenseLinear]) -> int:
    """Let attention layers of `model` rotate and store behind `layers`; return how many do.

    The first of each kind is tried against vLLM's own kernels. Raises ValueError, with nothing
    changed, when it is off by more than rounding.
    """
    found = [RotaryAttention(attention, layer) for attention, layer in _attentions(model, layers)]
    for one in {(f.layer.a.shape, f.heads): f for f in found}.values():
        try:
            _try(one)
        finally:
            for tensor in (one.layer.a, one.layer.b, one.layer.rows.mask):
                tensor.zero_()
    for one in found:
        one._module.forward = one
    if found:
        _log.info("%d attention layers rotate and store in one kernel", len(found))
    return len(found)


def _attentions(model: Any, layers: Mapping[str, DenseLinear]) -> Iterator[tuple[Any, DenseLinear]]:
    """Yield plain attention layers: heads rotate whole, the cache has the dtype of the model."""
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    from rlkit.generation.vllm.accel.rotary_kernel import fits

    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        attention = model.get_submodule(parent)
        children = dict(attention.named_children()).keys()
        if leaf != "qkv_proj" or type(attention).__name__ not in _KNOWN or children != _CHILDREN:
            continue
        rotary, attn = attention.rotary_emb, attention.attn
        plain_rotary = (
            isinstance(rotary, RotaryEmbedding)
            and type(rotary).forward_cuda is RotaryEmbedding.forward_cuda
            and rotary.is_neox_style
            and not rotary.use_flashinfer
            and rotary.rotary_dim == rotary.head_size == attn.head_size == attn.head_size_v
        )
        plain_attention = (
            type(attn.impl).__name__ == "FlashAttentionImpl"
            and type(attn).__name__ == "Attention"
            and attn.query_quant is None
            and not attn.calculate_kv_scales
            and attn.kv_sharing_target_layer_name is None
            and not attn.attn_backend.forward_includes_kv_cache_update
            and attn.kv_cache_dtype in ("auto", "bfloat16", "float16")
        )
        if (
            plain_rotary
            and plain_attention
            and layer.wide_size is not None
            and fits(attn.head_size)
        ):
            yield attention, layer


def _try(one: RotaryAttention) -> None:
    """Compare queries, keys and values with vLLM's own kernels on random rows in random places.

    Raises ValueError when they differ by more than rounding. It overwrites factors and mask.
    """
    layer, attention = one.layer, one._module
    x, _, bias = layer.random_inputs(_TRIED_ROWS)
    num_heads, num_kv_heads = one.heads
    width = attention.attn.head_size
    generator = torch.Generator().manual_seed(2)
    most = min(1000, len(one._table))
    positions = torch.randint(0, most, (_TRIED_ROWS,), generator=generator).to(x.device)
    slots = torch.randperm(4 * _TRIED_BLOCK, generator=generator)[:_TRIED_ROWS].to(x.device)
    cache = x.new_zeros(2, 4, _TRIED_BLOCK, num_kv_heads, width)
    got = one.forward(positions, x, (cache[0], cache[1]), slots)
    parts = [num_heads * width, num_kv_heads * width, num_kv_heads * width]
    q, k, v = torch.split(layer.forward(x, bias), parts, 1)
    q, k = attention.rotary_emb.forward_cuda(positions, q.contiguous(), k.contiguous())
    stored = (part.flatten(0, 1)[slots].flatten(1) for part in cache)
    for name, value, truth in zip("qkv", (got, *stored), (q, k, v), strict=True):
        error = float((value.float() - truth.float()).abs().max() / truth.float().abs().max())
        if not error <= 2 * torch.finfo(layer.b.dtype).eps:
            raise ValueError(f"its own {name} within rounding, got {error:.1e} off")
