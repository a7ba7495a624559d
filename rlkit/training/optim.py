"""Build the optimiser; its learning rate is a pure function of the number of the update."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from rlkit.runtime.distribution import how_to_install
from rlkit.schema import Between, Options, require
from rlkit.training.sharded import Sharded, Shares

_CONSTANTS = ("qmap1", "qmap2")
"""bitsandbytes' tables of the values that 8 bits stand for, the same for all parameters."""
_ADAMW_KEYS = ("step", "exp_avg", "exp_avg_sq")


class OptimKind(StrEnum):
    """The place and form of AdamW's two moments; 8 bits: Dettmers et al. 2022, arXiv:2110.02861."""

    adamw = "adamw"
    """float32, 8 bytes a parameter."""
    adamw8bit = "adamw8bit"
    """8 bits in blocks of 256 with a float32 scale each, 2 bytes a parameter; bitsandbytes."""
    paged_adamw8bit = "paged_adamw8bit"
    """The same in memory that CUDA moves to the host when the device's is short."""


class Schedule(StrEnum):
    """Shape of the learning rate after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@dataclass(kw_only=True, slots=True)
class OptimConfig(Options):
    """AdamW on what trains, and how often it steps on one rollout batch."""

    kind: OptimKind = OptimKind.adamw
    """Format of the moments; those of fewer than 4096 parameters are always float32."""
    learning_rate: Annotated[float, Between(0.0, 10.0)] = 1e-3
    """Peak learning rate, > 0 and <= 10, for LoRA. All weights (model.tuning=full) want a hundredth
    or less: 1e-5 for 135M parameters, 1e-6 from 1B on."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Adam's two decay rates, each in [0, 1). Default 0.9, 0.999 (Kingma & Ba 2015)."""
    eps: Annotated[float, Between(0.0, 1.0)] = 1e-8
    """Adam's denominator offset, > 0 and <= 1."""
    weight_decay: Annotated[float, Between(0.0, 100.0)] = 0.0
    """Decoupled weight decay, in [0, 100]; pulls LoRA factors to zero, that is, to the base model,
    but all weights (model.tuning=full) to zero itself."""
    max_grad_norm: float = 1.0
    """Gradients with a larger 2-norm are scaled down to it, > 0."""
    warmup_steps: int = 0
    """Optimiser updates over which the rate rises linearly from 0, >= 0."""
    schedule: Schedule = Schedule.constant
    """The course of the rate after warm-up; linear and cosine end at 0 with the last update."""
    inner_epochs: Annotated[int, Between(1, 10_000)] = 1
    """Passes over each rollout batch, in [1, 10000] (mu in DeepSeekMath)."""
    minibatches: int = 1
    """Optimiser updates per pass, >= 1; groups are split evenly among them."""
    max_skipped_updates: int = 5
    """Consecutive updates skipped for a non-finite gradient before the run stops, >= 1."""

    def __post_init__(self) -> None:
        if self.kind is not OptimKind.adamw and importlib.util.find_spec("bitsandbytes") is None:
            rule = f"adamw without bitsandbytes ({how_to_install('bitsandbytes')})"
            require(False, "optim.kind", rule, self.kind.value)
        require(self.learning_rate > 0, "optim.learning_rate", "> 0", self.learning_rate)
        valid_betas = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        require(valid_betas, "optim.betas", "two numbers in [0, 1)", self.betas)
        require(self.eps > 0, "optim.eps", "> 0", self.eps)
        require(self.weight_decay >= 0, "optim.weight_decay", ">= 0", self.weight_decay)
        require(self.max_grad_norm > 0, "optim.max_grad_norm", "> 0", self.max_grad_norm)
        require(self.warmup_steps >= 0, "optim.warmup_steps", ">= 0", self.warmup_steps)
        require(self.inner_epochs >= 1, "optim.inner_epochs", ">= 1", self.inner_epochs)
        require(self.minibatches >= 1, "optim.minibatches", ">= 1", self.minibatches)
        limit = self.max_skipped_updates
        require(limit >= 1, "optim.max_skipped_updates", ">= 1", limit)

    @property
    def updates_per_batch(self) -> int:
        """Count the optimiser updates on one rollout batch."""
        return self.inner_epochs * self.minibatches


def learning_rate(config: OptimConfig, *, update: int, total_updates: int) -> float:
    """Return the rate of update number `update` (from 0) out of `total_updates`."""
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
    shares: Shares | None = None,
) -> torch.optim.Optimizer:
    """Build AdamW over the named tensors, in their order.

    Tensors of one rate factor form a parameter group, which keeps it as `rate_factor`.

    Args:
        parameters: What trains.
        config: The options of the optimiser.
        rate_factor: It multiplies the learning rate of a tensor, by its name.
        shares: The rank that keeps each tensor and its moments; None = every rank keeps all.

    Returns:
        The optimiser, without moments yet.
    """
    by_factor: dict[float, list[Tensor]] = {}
    for name, parameter in parameters.items():
        by_factor.setdefault(rate_factor(name), []).append(parameter)
    groups = [{"params": leaves, "rate_factor": factor} for factor, leaves in by_factor.items()]
    make = partial(_adamw, config=config)
    return make(groups) if shares is None else Sharded(parameters, groups, make, shares)


def _count_writes(optimizer: torch.optim.Optimizer, _args: object, _kwargs: object) -> None:
    """Count the writes of fused kernels, which autograd misses: copies are known as old by them."""
    for group in optimizer.param_groups:
        torch.autograd.graph.increment_version(group["params"])


def _adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    optimizer = _adamw_of_kind(groups, config)
    optimizer.register_step_post_hook(_count_writes)
    return optimizer


def _adamw_of_kind(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    betas = (config.betas[0], config.betas[1])
    rate, eps, decay = config.learning_rate, config.eps, config.weight_decay
    if config.kind is OptimKind.adamw:
        return torch.optim.AdamW(
            groups, lr=rate, betas=betas, eps=eps, weight_decay=decay, fused=True
        )
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit

    on_cuda = any(parameter.is_cuda for group in groups for parameter in group["params"])
    paged = config.kind is OptimKind.paged_adamw8bit and on_cuda
    make = PagedAdamW8bit if paged else AdamW8bit
    optimizer: torch.optim.Optimizer = make(
        groups, lr=rate, betas=betas, eps=eps, weight_decay=decay
    )
    return optimizer


def state_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the optimiser's state by `{parameter}/{key}`; empty before the first update."""
    return {
        f"{name}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if key not in _CONSTANTS
    }


def restore_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put what `state_tensors` returned into a fresh optimiser of the same kind, bitwise.

    Raises ValueError on a name that no parameter has, or on the state of another kind.
    """
    _create_state(optimizer)
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        if name not in parameters:
            raise ValueError(f"optimizer state for an unknown parameter: {name}")
        state = optimizer.state[parameters[name]]
        created = state.get(key)
        if isinstance(created, int):
            state[key] = int(value)
        elif isinstance(created, Tensor):
            if created.shape != value.shape or created.dtype != value.dtype:
                raise ValueError(f"optimizer state of another optim.kind: {full_name}")
            created.copy_(value)
        elif isinstance(optimizer, torch.optim.AdamW) and key in _ADAMW_KEYS:
            state[key] = value.to(parameters[name].device, copy=True)
        else:
            raise ValueError(f"optimizer state of another optim.kind: {full_name}")


def _create_state(optimizer: torch.optim.Optimizer) -> None:
    """Create bitsandbytes' state before the first update, in its own memory; torch needs none."""
    if isinstance(optimizer, torch.optim.AdamW):
        return
    create: Callable[..., None] = optimizer.init_state  # type: ignore[attr-defined]
    for group_index, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            create(group, parameter, group_index, index)
