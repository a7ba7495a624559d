"""This module says what reward models take of the run's device, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from rlkit.models.peft_config import TENSORS
from rlkit.models.resolved import resolve_dtype
from rlkit.reward_models.adapter import HEAD
from rlkit.reward_models.classifier import classifier_config
from rlkit.reward_models.options import Placement, RewardModelOptions, reward_model_options
from rlkit.rewards import RewardFunctionConfig, RewardSpec

_WIDTHS, _INNER_WIDTHS = 6, 3
"""Arrays of hidden and of inner width that a layer holds at once, in the backbone's dtype."""


class ScorerBytes(NamedTuple):
    """This record is what reward models take of a device."""

    kept: int = 0
    """Their weights, or the adapters on the policy's base."""
    batch: int = 0
    """The largest forward pass of any: they score one after the other."""


NO_SCORERS = ScorerBytes()


def device_bytes(
    functions: Mapping[str, RewardFunctionConfig],
    device: torch.device,
    *,
    on_base: Callable[[int], int],
    itemsize: int,
) -> ScorerBytes:
    """Return the bytes of all reward models that compute on `device`.

    Those on the policy's base keep their adapter and head; the base counts elsewhere.

    Args:
        functions: The configured reward functions, by name.
        device: The device of the run.
        on_base: Tokens to the peak bytes of the policy's base without gradients, with an adapter.
        itemsize: Bytes of a number of the policy's base.

    Returns:
        Their sum, and the largest batch.

    Raises:
        ValueError: An option breaks a rule, or a classifier cannot be found; one line.
    """
    kept = batch = 0
    for name, function in functions.items():
        if (function.fn or name) != "reward_model":
            continue
        spec = RewardSpec(name, "reward_model", function.weight, function.options)
        options = reward_model_options(spec)
        if options.is_adapter:
            folder = Path(options.source).expanduser()
            weights = sum((folder / file).stat().st_size for file in (TENSORS, HEAD))
            most = on_base(_most_tokens(options)) + mask_bytes(options, itemsize=itemsize)
        elif _is_on(options.device, device):
            weights, most = _classifier(f"reward.functions.{name}.options", options, device)
        else:
            continue
        kept, batch = kept + weights, max(batch, most)
    return ScorerBytes(kept, batch)


def _is_on(placement: Placement, device: torch.device) -> bool:
    if placement is Placement.auto:
        return True
    return placement.value == device.type


def _classifier(key: str, options: RewardModelOptions, device: torch.device) -> ScorerBytes:
    config = classifier_config(key, options)
    dtype, _ = resolve_dtype(options.dtype, device)
    auto: Any = AutoModelForSequenceClassification
    with torch.device("meta"):
        model = auto.from_config(config)
    weights = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    return ScorerBytes(int(weights), batch_bytes(config, options, itemsize=dtype.itemsize))


def batch_bytes(config: PreTrainedConfig, options: RewardModelOptions, *, itemsize: int) -> int:
    """Return the peak of one forward pass without gradients, its attention mask included.

    Args:
        config: The classifier's config.
        options: They bound the tokens of a batch and of a row.
        itemsize: Bytes of a number of the backbone.
    """
    text = config.get_text_config()
    hidden = int(text.hidden_size)
    inner = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    states = itemsize * (_WIDTHS * hidden + _INNER_WIDTHS * inner)
    return _most_tokens(options) * states + mask_bytes(options, itemsize=itemsize)


def mask_bytes(options: RewardModelOptions, *, itemsize: int) -> int:
    """Return what says which token sees which: true or false, and again as numbers to add.

    Kernels make the numbers themselves, and copy them once to an aligned width.
    """
    return _most_tokens(options) * options.max_length * (1 + 2 * itemsize)


def _most_tokens(options: RewardModelOptions) -> int:
    return max(options.max_tokens_per_batch, options.max_length)
