"""Choose the type of each tensor of a GGUF file, as llama.cpp's own quantiser does.

Norms and biases stay float32. A `k_m` mixture gives more bits to the head, to half of the value
projections and to half of the down projections. Rows that are no multiple of 256 cannot have a
K-quant and get the next larger type with blocks of 32.

Source: the rules of `llama_tensor_get_type` in llama.cpp, as facts; checked on their outcome.
"""

from __future__ import annotations

from typing import NamedTuple

from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType

_PLAIN = {
    "f16": Type.F16,
    "q8_0": Type.Q8_0,
    "q6_k": Type.Q6_K,
    "q5_k_m": Type.Q5_K,
    "q4_k_m": Type.Q4_K,
    "q4_0": Type.Q4_0,
}
FILE_TYPES = {
    "f16": LlamaFileType.MOSTLY_F16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q6_k": LlamaFileType.MOSTLY_Q6_K,
    "q5_k_m": LlamaFileType.MOSTLY_Q5_K_M,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
_NARROWER_BLOCKS = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
_OUTPUT, _EMBEDDING = "output.weight", "token_embd.weight"


class TensorPlace(NamedTuple):
    """A tensor has this place in its model."""

    name: str
    """Its GGUF name."""
    shape: tuple[int, ...]
    """Rows first, as torch has it."""
    num_layers: int
    tied: bool
    """The embedding is the head as well."""


def type_of(place: TensorPlace, wanted: str) -> Type:
    """Return the type of a tensor in a file of the type `wanted`, such as `q4_k_m`."""
    plain = _PLAIN[wanted]
    if len(place.shape) < 2 or not place.name.endswith(".weight"):
        return Type.F32
    if plain is Type.F16:
        return plain
    width = place.shape[-1]
    if place.name == (_EMBEDDING if place.tied else _OUTPUT):
        chosen = Type.Q8_0 if plain is Type.Q8_0 or width % 256 else Type.Q6_K
    else:
        chosen = _mixed(place, plain) if wanted.endswith("_m") else plain
    if width % 256 and chosen in _NARROWER_BLOCKS:
        chosen = _NARROWER_BLOCKS[chosen]
    return Type.F16 if width % 32 else chosen


def _mixed(place: TensorPlace, plain: Type) -> Type:
    parts = place.name.split(".")
    if parts[0] != "blk":
        return plain
    layer, leaf = int(parts[1]), parts[2]
    if leaf in ("attn_v", "ffn_down") and _gets_more_bits(layer, place.num_layers):
        return Type.Q6_K
    if leaf == "attn_qkv":
        return Type.Q5_K if plain is Type.Q4_K else Type.Q6_K
    return plain


def _gets_more_bits(layer: int, num_layers: int) -> bool:
    """Return whether a layer is in the first or last eighth, or a third one between them."""
    first, last = num_layers // 8, 7 * num_layers // 8
    return layer < first or layer >= last or (layer - first) % 3 == 2
