"""Find what a run trained: the folder below, its config, its tokenizer, the adapter on it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from rlkit.assembly.saved_run import FinishedRun
from rlkit.models.peft_config import CONFIG, TENSORS, read_adapter_config
from rlkit.models.quantize import meta_model, quantisable
from rlkit.models.resolved import resolve_model, with_merged_adapter
from rlkit.models.rope import fixed_config
from rlkit.models.source import SourceKind, kind_of, readable
from rlkit.models.special import Stops, stop_token_ids, stops_of
from rlkit.policy.lora_files import ADAPTER_FOLDER
from rlkit.runtime.say import Say
from rlkit.tasks import Task, build_task

PREFIX = "base_model.model."
_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """This record holds the adapter of a run: its factors by layer, in memory, and its scale."""

    folder: Path
    rank: int
    scale: float
    base_name: str
    """The base that its config names; empty = none."""
    factors: Mapping[str, tuple[Tensor, Tensor]]
    """(A, B) of each adapted layer, by the layer's name in the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPolicy:
    """This record holds all of a trained policy but the weights of its base, which stay on disk."""

    run: FinishedRun
    base: Path
    """The folder of the base model, or of the whole model of a run that trained all weights."""
    hf_config: PreTrainedConfig
    """With the rotary factors that the run used, without a quantisation."""
    skeleton: nn.Module
    """The model without storage: names and shapes."""
    saved_quantization: Mapping[str, Any] | None
    """The quantisation of the base model's files, if they have one."""
    dtype: torch.dtype
    """The dtype that the run computed in."""
    tokenizer: PreTrainedTokenizerBase
    generation: GenerationConfig | None
    """The base model's own."""
    stops: Stops
    adapter: Adapter | None
    task: Task | None


def open_trained(run: FinishedRun, *, device: torch.device, say: Say) -> TrainedPolicy:
    """Read everything about a run's policy but the weights of its base.

    Args:
        run: The run.
        device: The device that `model.dtype=auto` is resolved for.
        say: Takes a line before each slow step.

    Returns:
        The record of the trained policy.

    Raises:
        ValueError: The base or the adapter is missing, or they do not fit together.
    """
    model = run.model
    adapter = _adapter(run.folder / ADAPTER_FOLDER) if run.has_adapter else None
    resolved = with_merged_adapter(resolve_model(model, device=device, say=say), say=say)
    hf_config = fixed_config(copy.deepcopy(resolved.hf_config), model.rope_length)
    saved = getattr(hf_config, "quantization_config", None)
    if saved is not None:
        del hf_config.quantization_config
    skeleton = meta_model(hf_config)
    if adapter is not None:
        _check_fits(adapter, skeleton)
    location = resolved.location
    if adapter is not None:
        _check_base(adapter, location)
    tokenizer = resolved.tokenizer
    with readable(model):
        folder = _local_folder(location, kind_of(location), resolved.revision)
    generation = None
    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(folder)
    eos = None if generation is None else generation.eos_token_id
    task = None if run.task is None else build_task(run.task)
    strings = (*run.sampling.stop, *(() if task is None else task.stop))
    return TrainedPolicy(
        run=run,
        base=folder,
        hf_config=hf_config,
        skeleton=skeleton,
        saved_quantization=saved
        if saved is None or isinstance(saved, Mapping)
        else saved.to_dict(),
        dtype=resolved.dtype,
        tokenizer=tokenizer,
        generation=generation,
        stops=stops_of(tokenizer, stop_token_ids(tokenizer, eos), strings),
        adapter=adapter,
        task=task,
    )


def _local_folder(location: str, kind: SourceKind, revision: str | None) -> Path:
    if kind is not SourceKind.hub or Path(location).is_dir():
        return Path(location)
    return Path(snapshot_download(location, revision=revision, allow_patterns=list(_FILES)))


def _adapter(folder: Path) -> Adapter:
    config = read_adapter_config(folder)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    try:
        with safe_open(folder / TENSORS, framework="pt") as file:
            keys = set(file.keys())
            for key in sorted(k for k in keys if k.endswith(".lora_A.weight")):
                layer = key.removesuffix(".lora_A.weight")
                pair = file.get_tensor(key), file.get_tensor(f"{layer}.lora_B.weight")
                factors[layer.removeprefix(PREFIX)] = pair
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / TENSORS} must be a safetensors file: {error}") from error
    if len(keys) != 2 * len(factors):
        raise ValueError(f"{folder / TENSORS} must hold pairs of lora_A and lora_B and no more")
    for layer, pair in factors.items():
        if not all(bool(factor.isfinite().all()) for factor in pair):
            raise ValueError(f"{folder / TENSORS}: tensors must be finite, got {layer}")
    values = json.loads((folder / CONFIG).read_text())
    return Adapter(
        folder=folder,
        rank=config.rank,
        scale=config.scale,
        base_name=str(values.get("base_model_name_or_path") or ""),
        factors=factors,
    )


def _check_base(adapter: Adapter, location: str) -> None:
    """Raise ValueError when the adapter names another base; the folder above it may have moved."""
    if adapter.base_name and Path(adapter.base_name).name != Path(location).name:
        raise ValueError(
            f"{adapter.folder / CONFIG} must name the run's base model {Path(location).name}, got "
            f"{adapter.base_name}"
        )


def _check_fits(adapter: Adapter, skeleton: nn.Module) -> None:
    """Raise ValueError when the adapter is one of another base."""
    layers = quantisable(skeleton)
    for layer, (a, b) in adapter.factors.items():
        found = layers.get(layer)
        shape = (b.shape[0], a.shape[1])
        if found is None or shape != (found.out_features, found.in_features):
            has = "none" if found is None else str((found.out_features, found.in_features))
            raise ValueError(
                f"{adapter.folder} must be an adapter of the run's base model, got one for a layer "
                f"{layer} of shape {shape}, where the base has {has}"
            )
