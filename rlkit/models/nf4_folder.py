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
from rlkit.models.config import AdapterUse, ModelConfig, QuantConfig
from rlkit.models.convert import build_once
from rlkit.models.load import load_model, resolve_dtype
from rlkit.models.quantize import (
    kept_layers,
    meta_model,
    quantisable,
    quantization_config,
    saved_quantization,
)
from rlkit.models.quiet import no_progress_bars
from rlkit.models.source import architecture_of, cache_root, load_options, locate
from rlkit.runtime.say import Say


def in_nf4(
    config: ModelConfig, quant: QuantConfig, *, device: torch.device, say: Say
) -> ModelConfig:
    """Quantise a model into a folder of the cache, once for each model, dtype and `quant`.

    Args:
        config: The options of the model.
        quant: Double quantisation and the layers that stay in 16 bits.
        device: The device that quantises.
        say: Takes a line before each slow step.

    Returns:
        `config` with the folder as its source; `config` itself where the model is NF4 already.

    Raises:
        ValueError: `quant` does not fit the model.
    """
    location = locate(config, say=say)
    hf_config = architecture_of(config, say=say)
    dtype, _ = resolve_dtype(config.dtype, device)
    quantization_config(quant, hf_config, dtype)  # refuses what does not fit
    if saved_quantization(hf_config) is not None:
        return config
    kept = sorted(kept_layers(quantisable(meta_model(hf_config)), quant.skip))
    identity = f"{_identity(location, hf_config)} {dtype} {quant.double_quant} {kept}"
    key = f"{Path(location).name[:60]}-nf4-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"

    def build(folder: Path) -> None:
        say(f"Quantising {config.source} to NF4 (once) ...")
        base = load_model(config, device=device, say=say, quant=quant)
        tokenizer: Any = AutoTokenizer.from_pretrained(location, **load_options(config))
        with no_progress_bars():
            base.model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    folder = build_once(cache_root(config.cache_dir) / "models" / key, build)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if config.adapter_use is AdapterUse.merge:  # it is in the folder's weights
        config = replace(config, adapter=None, adapter_use=AdapterUse.train)
    return replace(config, source=str(folder), revision=None)


def _identity(location: str, hf_config: PreTrainedConfig) -> str:
    """Return a text that changes when the model behind `location` does."""
    folder = Path(location)
    if not folder.is_dir():
        return f"{location}@{commit_hash(hf_config)}"
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    files = [f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats]
    return " ".join([str(folder.resolve()), *files])
