"""A whole model on disk in Hugging Face's format, as transformers and vLLM load it."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_FOLDER = "model"
"""The name of the model's folder in a run's folder."""


def save_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: Mapping[str, Tensor],
) -> None:
    """Write a model's folder, which appears whole; one of that name before is replaced.

    Args:
        folder: The folder to write.
        model: Gives the config, without its quantisation, and the generation config.
        tokenizer: Keeps the chat template that it has now.
        weights: The weights by parameter name, tied ones once, in 16 or 32 bits.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = next(iter(weights.values())).dtype
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(partial)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    # Not the model's own method: parameters that are views of an engine's weights share storages.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    file = partial / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    with file.open("rb") as written:
        os.fsync(written.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
