"""Name and reshape the tensors of each model family for llama.cpp, and list its numbers.

llama.cpp rotates neighbouring pairs of a head where Hugging Face rotates its two halves, so the
rows of q and k of some families change places. Gemma's norms multiply by 1 + w there and by w here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType, get_tensor_name_map
from torch import Tensor
from transformers import PreTrainedConfig

_ROTATED = ("q_proj", "k_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family says how llama.cpp sees the models of one `model_type`."""

    arch: MODEL_ARCH
    swaps_rows: bool = False
    """The rows of q and k go from halves to pairs."""
    norm_adds_one: bool = False
    rope_factors: bool = False
    """llama.cpp reads a tensor of rotary factors in this family."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family(arch=MODEL_ARCH.LLAMA, swaps_rows=True, rope_factors=True),
    "mistral": Family(arch=MODEL_ARCH.LLAMA, swaps_rows=True, rope_factors=True),
    "smollm3": Family(arch=MODEL_ARCH.SMOLLM3, swaps_rows=True),
    "granite": Family(arch=MODEL_ARCH.GRANITE, swaps_rows=True),
    "qwen2": Family(arch=MODEL_ARCH.QWEN2),
    "qwen3": Family(arch=MODEL_ARCH.QWEN3),
    "gemma": Family(arch=MODEL_ARCH.GEMMA, norm_adds_one=True),
    "gemma2": Family(arch=MODEL_ARCH.GEMMA2, norm_adds_one=True),
    "gemma3_text": Family(arch=MODEL_ARCH.GEMMA3, norm_adds_one=True),
    "phi": Family(arch=MODEL_ARCH.PHI2),
    "phi3": Family(arch=MODEL_ARCH.PHI3, rope_factors=True),
}
"""By `model_type`; a family is listed once a test compares it with transformers."""


def family_of(config: PreTrainedConfig) -> Family:
    """Return the family of a config; raises ValueError, with one line, for one without a map."""
    found = FAMILIES.get(config.model_type)
    if found is None:
        raise ValueError(
            f"--to gguf must have a model of the families {', '.join(FAMILIES)}, got "
            f"{config.model_type}, whose names in GGUF are not known here"
        )
    return found


class Names:
    """This object knows the GGUF name and shape of every tensor of one model."""

    def __init__(self, config: PreTrainedConfig) -> None:
        """Read the map of the config's family; raises ValueError when there is none."""
        self.family = family_of(config)
        self._config: Any = config
        self._map = get_tensor_name_map(self.family.arch, int(config.num_hidden_layers))

    def __call__(self, name: str) -> str:
        """Return the GGUF name of a parameter; raises ValueError when it has none."""
        found = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ValueError(
                f"--to gguf must have a name for every parameter, got none for {name} of "
                f"{self._config.model_type}"
            )
        return found

    def arrange(self, name: str, tensor: Tensor) -> Tensor:
        """Return a parameter, or the B factor of its adapter, as llama.cpp wants it."""
        layer = name.rpartition(".")[0]
        leaf = layer.rpartition(".")[2]
        if self.family.swaps_rows and leaf in _ROTATED:
            return self._pairs(tensor, leaf)
        if self.family.norm_adds_one and layer.endswith("norm"):
            return tensor + 1.0
        return tensor

    def _pairs(self, tensor: Tensor, leaf: str) -> Tensor:
        """Return the d rows of each head in the order 0, d/2, 1, d/2 + 1 and so on."""
        config = self._config
        heads = config.num_attention_heads if leaf == "q_proj" else config.num_key_value_heads
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.transpose(1, 2).reshape(tensor.shape)


def add_numbers(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Write the sizes of a model and its rotary settings.

    Raises ValueError, with one line, for a setting that llama.cpp does not have.
    """
    c: Any = config
    head = head_dim(config)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads or c.num_attention_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_vocab_size(c.vocab_size)
    if hasattr(c, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(c.layer_norm_eps)
    _add_rope(writer, config, head)
    further = _FURTHER.get(config.model_type)
    if further is not None:
        further(writer, c)


def head_dim(config: Any) -> int:
    """Return the size of an attention head."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def rope_tensors(config: PreTrainedConfig) -> dict[str, Tensor]:
    """Return the tensors of rotary factors of a model, by GGUF name; empty for most.

    llama.cpp divides the plain frequencies by them.
    """
    values = _rope(config)
    kind = _rope_kind(values)
    if kind == "longrope":
        names = {
            "long_factor": "rope_factors_long.weight",
            "short_factor": "rope_factors_short.weight",
        }
        return {name: torch.tensor(values[key], dtype=torch.float32) for key, name in names.items()}
    if kind == "llama3":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        size = head_dim(config)
        powers = torch.arange(0, size, 2, dtype=torch.float64) / size
        plain = float(values["rope_theta"]) ** -powers
        return {"rope_freqs.weight": (plain / scaled.double()).float()}
    return {}


def _rope(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the rotary settings, those of full attention where layers differ."""
    values: dict[str, Any] = dict(getattr(config, "rope_parameters", None) or {})
    nested = values.get("full_attention")
    return dict(nested) if isinstance(nested, dict) else values


def _rope_kind(values: Mapping[str, Any]) -> str:
    return str(values.get("rope_type") or values.get("type") or "default")


def _add_rope(writer: GGUFWriter, config: Any, head: int) -> None:
    values = _rope(config)
    kind = _rope_kind(values)
    partial = values.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None)
    writer.add_rope_dimension_count(int(head * (partial or 1.0)))
    writer.add_rope_freq_base(float(values["rope_theta"]))
    if kind in ("llama3", "longrope") and not FAMILIES[config.model_type].rope_factors:
        raise ValueError(
            f"--to gguf must have rotary factors that llama.cpp reads, got rope type {kind} in "
            f"a model of the family {config.model_type}"
        )
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(values["factor"]))
    elif kind == "yarn":
        original = values.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(values["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(original))
    elif kind == "longrope":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        _, scale = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"), seq_len=1)
        original = values.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(int(original))
        writer.add_rope_scaling_attn_factors(float(scale))
    elif kind not in ("default", "llama3", "dynamic"):
        raise ValueError(f"--to gguf must have a rope type that llama.cpp has, got {kind}")


def _windowed(writer: GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(int(config.sliding_window or 0))


def _gemma2(writer: GGUFWriter, config: Any) -> None:
    _windowed(writer, config)
    if config.attn_logit_softcapping:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    _check_scale(config, largest=46)


def _gemma3(writer: GGUFWriter, config: Any) -> None:
    _windowed(writer, config)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_rope_freq_base_swa(float(config.rope_parameters["sliding_attention"]["rope_theta"]))
    expected = [
        "full_attention" if (i + 1) % 6 == 0 else "sliding_attention"
        for i in range(config.num_hidden_layers)
    ]
    if list(config.layer_types) != expected:
        raise ValueError(
            "--to gguf must have full attention in every sixth layer of a Gemma 3, as llama.cpp "
            f"has, got {config.layer_types}"
        )
    _check_scale(config, largest=62)


def _check_scale(config: Any, *, largest: int) -> None:
    """Refuse a scale of attention scores that llama.cpp, which derives it, would not have."""
    wide = config.num_hidden_layers == largest
    wanted = config.hidden_size // config.num_attention_heads if wide else config.head_dim
    if config.query_pre_attn_scalar != wanted:
        raise ValueError(
            f"--to gguf must have query_pre_attn_scalar {wanted} in this family, as llama.cpp has, "
            f"got {config.query_pre_attn_scalar}"
        )


def _granite(writer: GGUFWriter, config: Any) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


_FURTHER: Mapping[str, Callable[[GGUFWriter, Any], None]] = {
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "granite": _granite,
    "phi3": _windowed,
}
