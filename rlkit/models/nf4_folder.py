"""Make a folder of a model in NF4, once: vLLM loads it, and the trainer with it."""

from __future__ import annotations

import gc
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig

from rlkit.models.compat import commit_hash
from rlkit.models.config import AdapterUse, QuantConfig
from rlkit.models.convert import build_once
from rlkit.models.load import load_resolved
from rlkit.models.quantize import (
    kept_layers,
    meta_model,
    quantisable,
    quantization_config,
    saved_quantization,
)
from rlkit.models.quiet import no_progress_bars
from rlkit.models.resolved import ResolvedModel
from rlkit.models.source import architecture_at, cache_root, load_options
from rlkit.runtime.say import Say


def in_nf4(model: ResolvedModel, quant: QuantConfig, *, say: Say) -> ResolvedModel:
    """Quantise a model into a folder of the cache, once for each model, dtype and `quant`.

    Args:
        model: The model, with its adapter merged where that is asked for.
        quant: Double quantisation and the layers that stay in 16 bits.
        say: Takes a line before each slow step.

    Returns:
        `model` at the folder; `model` itself where it is NF4 already.

    Raises:
        ValueError: `quant` does not fit the model.
    """
    config, location, hf_config, dtype = model.config, model.location, model.hf_config, model.dtype
    quantization_config(quant, hf_config, dtype)  # refuses what does not fit
    if saved_quantization(hf_config) is not None:
        return model
    kept = sorted(kept_layers(quantisable(meta_model(hf_config)), quant.skip))
    identity = f"{_identity(location, hf_config)} {dtype} {quant.double_quant} {kept}"
    key = f"{Path(location).name[:60]}-nf4-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"

    def build(folder: Path) -> None:
        say(f"Quantising {config.source} to NF4 (once) ...")
        base = load_resolved(model, say=say, quant=quant)
        # The model's own, without the chat template of this run: the next may choose another.
        own: Any = AutoTokenizer.from_pretrained(location, config=hf_config, **load_options(config))
        with no_progress_bars():
            base.model.save_pretrained(folder)
            own.save_pretrained(folder)

    folder = build_once(cache_root(config.cache_dir) / "models" / key, build)
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    if config.adapter_use is AdapterUse.merge:  # it is in the folder's weights
        config = replace(config, adapter=None, adapter_use=AdapterUse.train)
    config = replace(config, source=str(folder), revision=None)
    return replace(
        model,
        config=config,
        location=str(folder),
        revision=None,
        hf_config=architecture_at(str(folder), config),  # another one: it says how it is quantised
    )


def _identity(location: str, hf_config: PreTrainedConfig) -> str:
    """Return a text that changes when the model behind `location` does."""
    folder = Path(location)
    if not folder.is_dir():
        return f"{location}@{commit_hash(hf_config)}"
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    files = [f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats]
    return " ".join([str(folder.resolve()), *files])
