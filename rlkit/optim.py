"""The optimiser and its learning rate, a pure function of the number of the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor


class Schedule(StrEnum):
    """Shape of the learning rate after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW on the adapter, and how often it steps on one rollout batch."""

    learning_rate: float = 1e-3
    """Peak learning rate, > 0. LoRA wants about ten times the rate of full fine-tuning."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Adam's two decay rates, each in [0, 1). Default 0.9, 0.999 (Kingma & Ba 2015)."""
    eps: float = 1e-8
    """Adam's denominator offset, > 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay, >= 0; pulls LoRA factors to zero, that is, to the base model."""
    max_grad_norm: float = 1.0
    """Gradients with a larger 2-norm are scaled down to it, > 0."""
    warmup_steps: int = 0
    """Optimiser updates over which the rate rises linearly from 0, >= 0."""
    schedule: Schedule = Schedule.constant
    """What the rate does after warm-up; linear and cosine end at 0 with the last update."""
    inner_epochs: int = 1
    """Passes over each rollout batch, >= 1 (mu in DeepSeekMath)."""
    minibatches: int = 1
    """Optimiser updates per pass, >= 1; groups are split evenly among them."""
    max_skipped_updates: int = 5
    """Consecutive updates skipped for a non-finite gradient before the run stops, >= 1."""

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "learning_rate", "> 0", self.learning_rate)
        valid_betas = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        _require(valid_betas, "betas", "two numbers in [0, 1)", self.betas)
        _require(self.eps > 0, "eps", "> 0", self.eps)
        _require(self.weight_decay >= 0, "weight_decay", ">= 0", self.weight_decay)
        _require(self.max_grad_norm > 0, "max_grad_norm", "> 0", self.max_grad_norm)
        _require(self.warmup_steps >= 0, "warmup_steps", ">= 0", self.warmup_steps)
        _require(self.inner_epochs >= 1, "inner_epochs", ">= 1", self.inner_epochs)
        _require(self.minibatches >= 1, "minibatches", ">= 1", self.minibatches)
        limit = self.max_skipped_updates
        _require(limit >= 1, "max_skipped_updates", ">= 1", limit)

    @property
    def updates_per_batch(self) -> int:
        """Optimiser updates on one rollout batch."""
        return self.inner_epochs * self.minibatches


def _require(holds: bool, key: str, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"optim.{key} must be {rule}, got {value}")


def learning_rate(config: OptimConfig, *, update: int, total_updates: int) -> float:
    """The rate of update number `update` (from 0) out of `total_updates`."""
    if update < config.warmup_steps:
        return config.learning_rate * (update + 1) / config.warmup_steps
    span = max(1, total_updates - config.warmup_steps)
    progress = min(1.0, (update - config.warmup_steps) / span)
    factors = {
        Schedule.constant: 1.0,
        Schedule.linear: 1.0 - progress,
        Schedule.cosine: 0.5 * (1.0 + math.cos(math.pi * progress)),
    }
    return config.learning_rate * factors[config.schedule]


def build_optimizer(
    parameters: Mapping[str, Tensor],
    config: OptimConfig,
    *,
    rate_factor: Callable[[str], float] = lambda name: 1.0,
) -> torch.optim.AdamW:
    """AdamW over the named tensors, in their order.

    `rate_factor` multiplies the learning rate of a tensor, by its name; tensors of one factor form
    a parameter group, which keeps it as `rate_factor`.
    """
    groups: dict[float, list[Tensor]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(rate_factor(name), []).append(parameter)
    beta1, beta2 = config.betas
    return torch.optim.AdamW(
        [{"params": leaves, "rate_factor": factor} for factor, leaves in groups.items()],
        lr=config.learning_rate,
        betas=(beta1, beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
