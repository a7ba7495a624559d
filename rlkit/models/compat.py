"""This file holds every private name of transformers that rlkit uses, for all its versions.

Importing this module checks the names that have no substitute; importing transformers takes a
second. Written for transformers 5.17 to 5.24; docs/compatibility.md lists what was tested.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import SiLUActivation

from rlkit.runtime.private_names import MissingName, lacking, require_names

require_names(
    "transformers",
    "transformers.modeling_layers:GradientCheckpointingLayer",
    "transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS",
    "transformers:PreTrainedConfig._attn_implementation",
    "transformers.cache_utils:Cache",
    "transformers.cache_utils:DynamicLayer",
)

from transformers.cache_utils import Cache as Cache  # noqa: E402
from transformers.cache_utils import DynamicLayer as DynamicLayer  # noqa: E402
from transformers.modeling_layers import GradientCheckpointingLayer  # noqa: E402
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # noqa: E402

# The key-value cache's argument of models and of their attentions: transformers 5.24 renamed it,
# warns of the old name, and drops that in 5.40.
_CACHE_NAMES = ("cache", "past_key_values")


def cache_of(options: Mapping[str, Any]) -> Any:
    """Return the key-value cache among the arguments of a forward pass, by either name, or None.

    Raises ValueError when two different ones are given.
    """
    caches = [options[name] for name in _CACHE_NAMES if options.get(name) is not None]
    if len(caches) == 2 and caches[0] is not caches[1]:
        raise ValueError("a forward pass must get one cache, got cache= and past_key_values=")
    return caches[0] if caches else None


def with_cache(module: nn.Module, options: Mapping[str, Any], cache: Any) -> dict[str, Any]:
    """Return `options` with `cache` by the name that the `forward` of the module's class takes.

    Whatever cache `options` had before is left out; so is the name when `cache` is None, which is
    the default of both. `module` may be a weak proxy.
    """
    kept = {name: value for name, value in options.items() if name not in _CACHE_NAMES}
    return kept if cache is None else kept | {_cache_name(module.__class__.forward): cache}


@cache
def _cache_name(forward: Callable[..., Any]) -> str:
    # The signature is that of the undecorated function, without the name that is warned of.
    parameters = inspect.signature(forward).parameters
    for name in _CACHE_NAMES:
        if name in parameters:
            return name
    raise MissingName(lacking("transformers", f"{forward.__qualname__}(cache=)"))


def attention_implementation(config: PreTrainedConfig) -> str:
    """Return the name of the attention function that the layers of the model with `config` call."""
    return str(config._attn_implementation)


def attention_function(name: str) -> Callable[..., Any]:
    """Return the attention function registered under `name`."""
    found: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[name]
    return found


@contextmanager
def attention_named(config: PreTrainedConfig, name: str) -> Iterator[None]:
    """Inside, the layers of the model with `config` call the attention function `name`.

    transformers' own setter would check `name` against the model's flags, which know no packing.
    """
    # Layers read the name from the config in each forward pass, so it can change between two.
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def commit_hash(config: PreTrainedConfig) -> str | None:
    """Return the commit of the hub's repository that `config` was read from, if known."""
    found: str | None = getattr(config, "_commit_hash", None)
    return found


Rerun = Callable[..., Any]
"""A function of a layer's call without its first argument, of that argument, and of the rest."""


def recomputable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that can be handed to `recompute_with`, by their names.

    Raises MissingName when transformers no longer calls the function that a layer is given.
    """
    if not _calls_given_function():
        name = "GradientCheckpointingLayer._gradient_checkpointing_func"
        raise MissingName(lacking("transformers", name))
    named = model.named_modules()
    return {n: m for n, m in named if isinstance(m, GradientCheckpointingLayer)}


def recompute_with(layer: nn.Module, rerun: Rerun) -> None:
    """Send the layer's calls through `rerun` from here on, until `compute_once`."""
    # The attributes are set by hand. `gradient_checkpointing_enable` would put the whole model,
    # dropout included, in training mode and drop the cache of generation.
    layer.gradient_checkpointing = layer.training = True  # type: ignore[assignment]
    layer._gradient_checkpointing_func = rerun  # type: ignore[assignment]


def compute_once(layer: nn.Module) -> None:
    """Undo `recompute_with`."""
    layer.gradient_checkpointing = layer.training = False  # type: ignore[assignment]


@cache
def _calls_given_function() -> bool:
    """Tell if a layer in the state that `recompute_with` makes calls the given function."""

    class Probe(GradientCheckpointingLayer):  # type: ignore[no-untyped-call]
        def forward(self, x: int) -> int:
            return x

    layer = Probe()
    recompute_with(layer, lambda call, x: call(x) + 1)
    try:
        with torch.enable_grad():
            return bool(layer(1) == 2)
    except (AttributeError, TypeError):
        return False


class Known(StrEnum):
    """Modules of which rlkit knows what they compute."""

    norm = "norm"
    """RMSNorm: weight * x / rms(x)."""
    mlp = "mlp"
    """down_proj(silu(gate_proj(x)) * up_proj(x))."""
    attention = "attention"
    """Rotary attention with grouped queries, with or without norms of queries and keys."""


_CLASSES = {
    **dict.fromkeys(("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"), Known.norm),
    **dict.fromkeys(("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"), Known.mlp),
    **dict.fromkeys(("LlamaAttention", "Qwen2Attention", "Qwen3Attention"), Known.attention),
}
_HAVE = {
    Known.norm: ("weight", "variance_epsilon"),
    Known.mlp: ("gate_proj", "up_proj", "down_proj", "act_fn"),
    Known.attention: (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("head_dim", "scaling", "config"),
    ),
}
_ATTENTION_TAKES = {
    *("self", "hidden_states", "position_embeddings", "attention_mask"),
    *(*_CACHE_NAMES, "kwargs"),
}
_ENDS_IN_DOWN_PROJ = (
    *("CohereDecoderLayer", "GemmaDecoderLayer", "GraniteDecoderLayer", "LlamaDecoderLayer"),
    *("MistralDecoderLayer", "Phi3DecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"),
    "SmolLM3DecoderLayer",
)


def known_kind(module: nn.Module) -> Known | None:
    """Name what `module` computes if rlkit knows it; None leaves it to transformers' own code.

    A class that has lost an attribute, or an attention that takes an argument more, is not known.
    """
    kind = _CLASSES.get(type(module).__name__)
    if kind is None or not all(hasattr(module, name) for name in _HAVE[kind]):
        return None
    if kind is Known.mlp and not isinstance(module.act_fn, SiLUActivation | nn.SiLU):
        return None
    if kind is Known.attention and not _arguments(type(module).forward) <= _ATTENTION_TAKES:
        return None
    return kind


@cache
def _arguments(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def last_products(model: nn.Module) -> set[str]:
    """Return the linear layers whose result is only added to that of their decoder layer.

    A decoder layer that runs again for its gradients does not need the values of that product.
    """
    return {
        f"{name}.mlp.down_proj"
        for name, module in model.named_modules()
        if type(module).__name__ in _ENDS_IN_DOWN_PROJ
    }
