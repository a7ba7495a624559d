"""This module says what reward models take of the run's device, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from rlkit.models.peft_config import TENSORS
from rlkit.models.resolved import resolve_dtype
from rlkit.reward_models.classifier import classifier_config
from rlkit.reward_models.options import Placement, RewardModelOptions, reward_model_options
from rlkit.rewards import RewardFunctionConfig, RewardSpec

_WIDTHS, _INNER_WIDTHS = 6, 3
"""Arrays of hidden and of inner width that a layer holds at once, in the backbone's dtype."""


def device_bytes(functions: Mapping[str, RewardFunctionConfig], device: torch.device) -> int:
    """Return the bytes of all reward models that compute on `device`, each with one batch.

    Those on the policy's base take their adapter and a batch's states; the base counts elsewhere.

    Args:
        functions: The configured reward functions, by name.
        device: The device of the run.

    Raises:
        ValueError: An option breaks a rule, or a classifier cannot be found; one line.
    """
    total = 0
    for name, function in functions.items():
        if (function.fn or name) != "reward_model":
            continue
        spec = RewardSpec(name, "reward_model", function.weight, function.options)
        options = reward_model_options(spec)
        if _is_on(options.device, device) or options.is_adapter:
            total += _bytes(f"reward.functions.{name}.options", options, device)
    return total


def _is_on(placement: Placement, device: torch.device) -> bool:
    if placement is Placement.auto:
        return True
    return placement.value == device.type


def _bytes(key: str, options: RewardModelOptions, device: torch.device) -> int:
    if options.is_adapter:
        return (Path(options.source).expanduser() / TENSORS).stat().st_size
    config = classifier_config(key, options)
    dtype, _ = resolve_dtype(options.dtype, device)
    auto: Any = AutoModelForSequenceClassification
    with torch.device("meta"):
        model = auto.from_config(config)
    weights = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    return int(weights) + batch_bytes(config, options, itemsize=dtype.itemsize)


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
    tokens = max(options.max_tokens_per_batch, options.max_length)
    return tokens * (itemsize * (_WIDTHS * hidden + _INNER_WIDTHS * inner) + options.max_length)
