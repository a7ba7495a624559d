"""A run that starts from an adapter, such as one of supervised fine-tuning (`model.adapter`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from rlkit.config import Config, ConfigError
from rlkit.models.config import AdapterUse, LoRAConfig, ModelConfig, TuningKind
from rlkit.models.convert import build_once
from rlkit.models.load import load_model
from rlkit.models.save import save_model
from rlkit.models.source import cache_root, locate
from rlkit.policy.lora import LoRA, attach
from rlkit.policy.lora_files import CONFIG, TENSORS, load_adapter, read_adapter_config
from rlkit.policy.lora_merge import merged_weights
from rlkit.policy.policy import Policy

Say = Callable[[str], None]


def with_adapter(config: Config, *, device: torch.device, say: Say) -> Config:
    """Resolve `model.adapter` before anything is loaded.

    Args:
        config: The user's configuration.
        device: Where the run computes; an adapter is merged in float32 there.
        say: Gets a line that says what is done with the adapter.

    Returns:
        `config` with the adapter's rank, scale and layers in `model.lora` where it trains on, or
        with the merged model as `model.source` where it is part of the reference policy.

    Raises:
        ValueError: The folder holds no adapter that rlkit computes, or `model` asks for another.
    """
    model = config.model
    if not model.adapter:
        return config
    folder = Path(model.adapter).expanduser()
    found = read_adapter_config(folder)
    if model.adapter_use is AdapterUse.merge:
        return replace(config, model=_merged(model, folder, found, device, say))
    if model.tuning is TuningKind.full:
        raise ConfigError("model.adapter_use must be merge with model.tuning=full, got train")
    shape = replace(found, dtype=model.lora.dtype)
    if model.lora not in (LoRAConfig(dtype=model.lora.dtype), shape):
        raise ConfigError(
            "model.lora must be left as it is with model.adapter, which brings its own: got "
            f"{model.lora} for {shape}"
        )
    scale = " by rsLoRA's rule" if found.rslora else ""
    say(
        f"adapter: training goes on from {folder} (rank {found.rank}, scale "
        f"{found.scale:g}{scale}); the reference policy is the model without it"
    )
    return replace(config, model=replace(model, lora=shape))


def started(policy: Policy, config: ModelConfig) -> Policy:
    """Return `policy` with the tensors of `config.adapter`, if there is one."""
    if not config.adapter or not isinstance(policy.tuning, LoRA):
        return policy
    folder = Path(config.adapter).expanduser()
    adapter = load_adapter(folder, policy.tuning, device=policy.head.weight.device)
    return replace(policy, adapter=adapter)


def _merged(
    model: ModelConfig, folder: Path, found: LoRAConfig, device: torch.device, say: Say
) -> ModelConfig:
    """`model` with the merged folder in the cache as its source; it is made once."""
    plain = replace(model, adapter="", adapter_use=AdapterUse.train)
    location = locate(plain, say=say)
    digest = hashlib.sha256(f"{Path(location).resolve()} {model.dtype}".encode())
    for name in (CONFIG, TENSORS):
        digest.update((folder / name).read_bytes())
    key = f"{Path(location).name[:60]}-merged-{digest.hexdigest()[:12]}"

    def build(target: Path) -> None:
        say(f"Merging {folder} into {model.source} (once) ...")
        base = load_model(replace(plain, chat_template_kwargs={}), device=device, say=say)
        lora = attach(base.model, found, dtype=base.dtype)
        adapter = load_adapter(folder, lora, device=device)
        weights = merged_weights(base.model, lora, adapter, dtype=base.dtype)
        save_model(target, base.model, base.tokenizer, weights)

    target = build_once(cache_root(model.cache_dir) / "models" / key, build)
    say(f"adapter: {folder} is part of the frozen model and of the reference policy ({target})")
    return replace(plain, source=str(target), revision=None, chat_template_name="")
