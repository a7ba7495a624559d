"""Save a whole model in Hugging Face's format, as transformers and vLLM load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlkit.models.config import ModelConfig
from rlkit.models.rope import fixed_config, switches
from rlkit.models.source import architecture_at
from rlkit.runtime.files import published, remove_leftovers

MODEL_FOLDER = "model"
"""The name of the model's folder in a run's folder."""


def save_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: Mapping[str, Tensor],
    *,
    rope_length: int | None,
) -> None:
    """Write a model's folder, which appears whole; one of that name before is replaced.

    Args:
        folder: The folder to write.
        model: Gives the config, without its quantisation, and the generation config.
        tokenizer: Keeps the chat template that it has now.
        weights: The weights by parameter name, tied ones once, in 16 or 32 bits.
        rope_length: The config gets the rotary factors of a row of this many tokens, as the run
            had; None = the model's own.
    """
    config = fixed_config(model.config, rope_length)
    config.architectures = [type(model).__name__]
    config.dtype = next(iter(weights.values())).dtype
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    with published(folder) as scratch:
        scratch.mkdir()
        config.save_pretrained(scratch)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        # Not the model's own method: parameters that are views of an engine's weights share
        # storages, which it refuses to write.
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})


def left_to_fix(folder: Path, model: ModelConfig) -> int | None:
    """Return the `model.rope_length` that the model in a run's folder still needs.

    A folder has the run's factors in its config. With dynamic NTK they are then the same at every
    length, and None is left. Folders of older runs have the base's config and need the length.
    """
    if model.rope_length is None or not (folder / "config.json").is_file():
        return model.rope_length
    here = replace(model, source=str(folder), revision=None)
    return model.rope_length if switches(architecture_at(str(folder), here)) else None
