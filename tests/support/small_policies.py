"""Policies over tiny models, and the batches that several test files score with them."""

from __future__ import annotations

import torch
from tiny_models import grouped_batch
from torch import Tensor
from transformers import PreTrainedModel

from rlkit.models.families import head_of
from rlkit.policy.lora import LoRAConfig, attach, init_adapter
from rlkit.policy.policy import Policy, init_critic
from rlkit.types import RolloutBatch

CPU = torch.device("cpu")


def make_policy(model: PreTrainedModel, **options: object) -> Policy:
    """A policy whose adapter does something: B is random."""
    lora = attach(model, LoRAConfig(rank=4, alpha=6.0), dtype=model.dtype)
    return Policy(
        model=model,
        tuning=lora,
        head=head_of(model),
        adapter=filled(init_adapter(lora, seed=1, device=CPU), seed=2),
        critic=filled(init_critic(lora, num_hidden=32, seed=3, device=CPU), seed=4),
        **options,  # type: ignore[arg-type]
    )


def filled(adapter: dict[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: (0.2 * torch.randn(x.shape, generator=generator)).double().requires_grad_()
        for key, x in adapter.items()
    }


def three_groups() -> RolloutBatch:
    return grouped_batch(
        prefix=20, rests=[3, 7, 5], group_sizes=[2, 2, 2], completions=[4, 6, 1, 3, 6, 2]
    )
