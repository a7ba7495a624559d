"""Load tiny models with quantised layers, and the gradients of their adapters."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import make_batch, random_ids
from torch import Tensor, nn

from rlkit.models import ModelConfig, QuantConfig
from rlkit.models.load import BaseModel, load_model
from rlkit.policy.lora import LoRAConfig
from rlkit.policy.policy import new_policy

CPU = torch.device("cpu")


def load(folder: Path, quant: QuantConfig, **options: object) -> BaseModel:
    config = ModelConfig(source=str(folder), lora=LoRAConfig(rank=4), **options)  # type: ignore[arg-type]
    return load_model(config, device=CPU, say=lambda _: None, quant=quant)


def layer(model: nn.Module, name: str) -> nn.Linear:
    found = model.get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found


def gradients(base: BaseModel, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    policy = new_policy(base, ModelConfig(lora=LoRAConfig(rank=4)), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for leaf in policy.adapter.values():
        leaf.data = torch.randn(leaf.shape, generator=generator) * 0.1
    batch = make_batch([random_ids(5, seed=2), random_ids(8, seed=3)], [[5, 6, 7], [9, 4]])
    logps = policy.forward(batch, adapter=policy.adapter, temperature=1.0).logps
    (logps * torch.randn(logps.shape, generator=generator)).sum().backward()  # type: ignore[no-untyped-call]
    grads = {k: v.grad for k, v in policy.adapter.items() if v.grad is not None}
    assert grads.keys() == policy.adapter.keys()
    return logps.detach(), grads
