"""This module finds a micro-batch's activation memory from the model's code without storage.

It runs two and three decoder layers, with adapters, recomputation and head, forward and backward
on the meta device. What the third layer adds, every further layer adds too, so

    peak(L) = peak(2) + (L - 2) (peak(3) - peak(2)).

Nothing is allocated and nothing is computed: a 70B model takes as long as a small one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_utils import AttentionInterface

from rlkit.kernels.workspace import logps_workspace_bytes
from rlkit.models.config import Checkpointing, LoRAConfig, QuantKind, TuningKind
from rlkit.models.families import backbone_of, head_of
from rlkit.models.fused import fuse
from rlkit.models.recompute import recomputed
from rlkit.models.rope import row_lengths
from rlkit.plan.dequantising import dequantising
from rlkit.plan.live import LiveBytes
from rlkit.policy.full_weights import FullWeights
from rlkit.policy.lora import attach
from rlkit.policy.policy import Tuning

_RETAINED_BY_OFFLOAD = 3
"""Layer inputs on the device at once: the newest, one that leaves and one that comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingWork:
    """This is one micro-batch of forward and backward."""

    num_tokens: int
    """Tokens that go through the layers, padding included."""
    num_scored: int
    """Completion tokens, whose logps are wanted."""
    dtype: torch.dtype
    quant: QuantKind
    """What linear layers are dequantised from for every product; `none` = not at all."""
    lora_rank: int
    lora_targets: tuple[str, ...]
    checkpointing: Checkpointing
    """Not `auto`."""
    ragged: bool
    """Attention by one kernel over a packed row (CUDA, 16 bits), else over padded copies."""
    with_gradient: bool = True
    """False: forward alone."""
    tuning: TuningKind = TuningKind.lora


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """This record has the most bytes alive beside weights, adapters, gradients and optimiser."""

    layers: int
    """At any time, the log-prob kernel's workspace left out."""
    head: int
    """When that workspace is taken."""
    workspace: int
    """It would take this without a bound."""

    def with_workspace(self, limit: int) -> int:
        """Return the peak when the workspace is at most `limit` bytes."""
        return max(self.layers, self.head + min(self.workspace, limit))


def peaks(config: PreTrainedConfig, work: TrainingWork) -> Peaks:
    """Return the peaks of `work` for the whole model."""
    return _peaks(config.model_type, config.to_json_string(use_diff=False), work)


@lru_cache(maxsize=512)
def _peaks(model_type: str, values: str, work: TrainingWork) -> Peaks:
    config = CONFIG_MAPPING[model_type].from_dict(json.loads(values))
    layers = int(config.num_hidden_layers)
    if layers <= 2:
        return _peaks_of(config, work, num_layers=layers)
    two, three = (_peaks_of(config, work, num_layers=n) for n in (2, 3))
    on_host = 0
    if work.checkpointing is Checkpointing.offload and work.with_gradient:
        boundary = work.num_tokens * int(config.hidden_size) * work.dtype.itemsize
        on_host = max(0, layers - _RETAINED_BY_OFFLOAD) * boundary
    return Peaks(
        layers=two.layers + (layers - 2) * (three.layers - two.layers) - on_host,
        head=two.head + (layers - 2) * (three.head - two.head) - on_host,
        workspace=two.workspace,
    )


def _peaks_of(config: PreTrainedConfig, work: TrainingWork, *, num_layers: int) -> Peaks:
    with torch.device("meta"), ExitStack() as stack:
        model = _meta_model(config, work, num_layers=num_layers)
        head = head_of(model).weight
        tuning, leaves = _trained(model, work)
        if work.ragged:
            fuse(model, join=tuning.join)
        for leaf in leaves.values():
            leaf.grad = torch.zeros_like(leaf)  # counted with what trains, not here
        inputs = torch.zeros(1, work.num_tokens, dtype=torch.long)
        live = stack.enter_context(LiveBytes())
        stack.enter_context(torch.set_grad_enabled(work.with_gradient))
        stack.enter_context(tuning.active(leaves))
        # Positions on meta have no values that transformers could choose rotary factors by.
        stack.enter_context(row_lengths(model, 1))
        if work.with_gradient and work.checkpointing is not Checkpointing.off:
            stack.enter_context(recomputed(model, tuning))
        embedded = model.get_input_embeddings()(inputs)
        states = backbone_of(model)(inputs_embeds=embedded, use_cache=False).last_hidden_state
        del embedded
        rows = torch.zeros(work.num_scored, dtype=torch.long)
        selected = states.flatten(0, 1).index_select(0, rows)
        trains_head = head.requires_grad and work.with_gradient
        logps = _apply(_TrainedHead, selected, head) if trains_head else _apply(_Head, selected)
        del states, selected
        at_head = live.now + (4 * head.numel() if trains_head else 0)
        if work.with_gradient:
            torch.autograd.backward(logps.sum())
        workspace = logps_workspace_bytes(work.num_scored, *head.shape, dtype=work.dtype)
        return Peaks(layers=live.peak, head=at_head, workspace=workspace)


def _trained(model: Any, work: TrainingWork) -> tuple[Tuning, dict[str, Tensor]]:
    """Return what trains of `model`, as `rlkit.policy.policy.new_policy` makes it."""
    if work.tuning is TuningKind.full:
        full = FullWeights(model, dtype=work.dtype, holds_reference=False)
        return full, full.masters
    lora = attach(
        model, LoRAConfig(rank=work.lora_rank, targets=list(work.lora_targets)), dtype=work.dtype
    )
    shapes = lora.expected_shapes()
    return lora, {key: torch.zeros(shape, requires_grad=True) for key, shape in shapes.items()}


def _meta_model(config: PreTrainedConfig, work: TrainingWork, *, num_layers: int) -> Any:
    values = {k: v for k, v in config.to_dict().items() if k != "quantization_config"}
    values["num_hidden_layers"] = num_layers
    if values.get("layer_types"):
        values["layer_types"] = values["layer_types"][:num_layers]
    small = type(config).from_dict(values)
    auto: Any = AutoModelForCausalLM
    with _default_dtype(work.dtype):
        model = auto.from_config(small, attn_implementation=_ATTENTION[work.ragged])
    model.requires_grad_(False).train(False)
    dequantising(model, work.quant, work.dtype)
    return model


def _apply(function: Any, *inputs: Tensor) -> Tensor:
    out: Tensor = function.apply(*inputs)
    return out


class _Attention(torch.autograd.Function):
    """FlashAttention allocates and keeps these: inputs, outputs, one float32 a query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:2], dtype=torch.float32))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *_ = ctx.saved_tensors
        sums = torch.empty_like(q, dtype=torch.float32), torch.empty_like(q), torch.empty_like(q)
        del sums  # of dq in float32, and of dk and dv for each head of a group
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _attend(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: object, **_options: object
) -> tuple[Tensor, None]:
    """Return (1, T, H, d) from (1, H, T, d), as `rlkit.models.attention.attend` does it."""
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    out = _apply(_Attention, q, k, v)
    return out[None], None


def _attend_padded(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: object, **_options: object
) -> tuple[Tensor, None]:
    q, k, v = (x.squeeze(0).transpose(0, 1).clone() for x in (query, key, value))
    out = _apply(_Attention, q, k, v)
    return out.clone().clone()[None], None


_ATTENTION = {True: "rlkit_simulated_ragged", False: "rlkit_simulated_padded"}
AttentionInterface.register(_ATTENTION[True], _attend)
AttentionInterface.register(_ATTENTION[False], _attend_padded)


class _Head(torch.autograd.Function):
    """The log-prob kernel keeps this: one direction a row, to go back along."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.direction = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        return torch.empty(len(hidden), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_grads: Tensor) -> Tensor:
        direction, ctx.direction = ctx.direction, None
        out: Tensor = direction.mul_(2.0)  # in place, as the kernel does
        return out


class _TrainedHead(torch.autograd.Function):
    """This is a head that trains: inputs are kept, its gradient is summed in float32."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return torch.empty(len(hidden), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_grads: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight = ctx.saved_tensors
        sums = torch.empty_like(weight, dtype=torch.float32)
        return torch.empty_like(hidden), sums.to(weight.dtype)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
