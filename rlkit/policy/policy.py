"""A policy is a model and what of it trains, scored on completion tokens only.

With LoRA the reference policy is the model with the adapter off. A critic, if there is one, is a
second adapter with a linear value head. When all weights train, the reference is a copy of the
first ones. Logits over the vocabulary are never held for a whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from rlkit.kernels.compact import spread
from rlkit.kernels.kl import kl_exact
from rlkit.kernels.logps import EntropyMode, selected_logps
from rlkit.kernels.workspace import WORKSPACE_BYTES
from rlkit.models.attention import packed_attention
from rlkit.models.config import AdapterUse, Checkpointing, ModelConfig, Switch, TuningKind
from rlkit.models.families import Head, backbone_of, head_of
from rlkit.models.fused import fuse
from rlkit.models.hidden import Scoring, completion_states, prepare
from rlkit.models.joined import Projection
from rlkit.models.load import BaseModel
from rlkit.models.offload import Offload
from rlkit.models.packing import context_lengths
from rlkit.models.recompute import TrainsLayers, recomputed
from rlkit.models.rope import one_set
from rlkit.policy.full_weights import FullWeights
from rlkit.policy.lora import LoRA, attach, init_adapter
from rlkit.policy.lora_files import load_adapter
from rlkit.types import FullKL, OutputSpec, PolicyOutput, RolloutBatch

CRITIC_PREFIX = "critic/"
"""The names of the critic's tensors begin with this among the trainable ones."""
VALUE_WEIGHT = "value_head.weight"
VALUE_BIAS = "value_head.bias"
_LOGPS_ONLY = OutputSpec()


class CriticChoice(StrEnum):
    """This record is the critic that a policy carries."""

    none = "none"
    lora = "lora"
    """A second adapter on the same base, with a linear value head."""


class Tuning(TrainsLayers, Protocol):
    """This protocol is how the tensors that train take part in the model's forward passes."""

    dtype: torch.dtype
    """Compute dtype."""

    def active(self, adapter: Mapping[str, Tensor] | None, /) -> AbstractContextManager[None]:
        """Forward passes inside use `adapter`, the head included; None = the reference policy."""
        ...

    def join(self, layers: Mapping[str, nn.Module], /) -> Projection | None:
        """Compute layers with one input, by name, as one; None where they cannot be."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy has handles to a model and tensors; `adapter` and `critic` change in place."""

    model: PreTrainedModel
    tuning: Tuning
    """`LoRA` or `FullWeights`."""
    head: Head
    """The head of what is active; its tensors are the model's own."""
    adapter: dict[str, Tensor]
    """The leaves that train: LoRA's tensors in `model.lora.dtype`, or all weights in float32."""
    critic: dict[str, Tensor] | None = None
    """The critic's LoRA tensors with `value_head.weight` (1, D) and `value_head.bias` (1,)."""
    offload: Offload | None = None
    """Holds the layers' inputs under `Checkpointing.offload`; None = they stay on the device."""
    gradient_checkpointing: Checkpointing = Checkpointing.off
    shared_prefix: Switch = Switch.auto
    workspace_bytes: int = WORKSPACE_BYTES
    """Bound on the temporary memory of the head's kernels."""

    def forward(
        self,
        batch: RolloutBatch,
        *,
        adapter: Mapping[str, Tensor] | None,
        temperature: float,
        spec: OutputSpec = _LOGPS_ONLY,
    ) -> PolicyOutput:
        """Compute the logps of the completion tokens, and what `spec` asks for beside them.

        logps[b, t] = log softmax(logits / temperature)[completion_ids[b, t]] given all before it.
        They are differentiable in `adapter` and `critic`. Equal rows in equal order give bitwise
        equal logps, with and without gradients. So an adapter with B = 0 equals None: score policy
        and reference in the same micro-batches.

        Args:
            batch: The rows to score.
            adapter: The tensors that train; None = the reference policy.
            temperature: Divides the logits, > 0.
            spec: The further outputs: entropy, values, KL over the vocabulary.

        Returns:
            (B, C) tensors, 0 on padding.

        Raises:
            ValueError: A prompt is empty, the adapter is foreign, or `spec.values` has no critic.
        """
        if spec.values and self.critic is None:
            raise ValueError("values need a critic, got a policy without one")
        # It depends on neither grad mode nor adapter: policy and reference must take the same way.
        lengths = context_lengths(batch)
        share = self.shared_prefix is not Switch.off and one_set(self.model, lengths)
        scoring = prepare(self.model.config, batch, dtype=self.tuning.dtype, share=share)
        mask = batch.completion_mask
        full_kl = values = None
        with self.tuning.active(adapter):
            states = self._states(scoring)
            result = selected_logps(
                states,
                self.head.weight,
                batch.completion_ids[mask],
                temperature=temperature,
                logit_scale=self.head.logit_scale,
                softcap=self.head.softcap,
                bias=self.head.bias,
                entropy=_entropy_mode(spec),
                workspace_bytes=self.workspace_bytes,
            )
            if spec.full_kl is not None:
                full_kl = self._full_kl(scoring, states, spec.full_kl, temperature)
        if spec.values:
            values = spread(self._values(scoring), mask)
        return PolicyOutput(
            logps=spread(result.logps, mask),
            entropy=None if result.entropy is None else spread(result.entropy, mask),
            values=values,
            full_kl=None if full_kl is None else spread(full_kl, mask),
        )

    def named_parameters(self) -> dict[str, Tensor]:
        """Return the leaves that an optimiser steps: the adapter's, then `critic/...`.

        The order depends on the model alone.
        """
        critic = self.critic or {}
        return {**self.adapter, **{f"{CRITIC_PREFIX}{name}": leaf for name, leaf in critic.items()}}

    def _states(self, scoring: Scoring) -> Tensor:
        """Return the states of what is active."""
        with ExitStack() as stack:
            stack.enter_context(packed_attention(self.model.config))
            if self.gradient_checkpointing is not Checkpointing.off and torch.is_grad_enabled():
                again = partial(packed_attention, self.model.config)
                stack.enter_context(
                    recomputed(self.model, self.tuning, again=again, offload=self.offload)
                )
            return completion_states(backbone_of(self.model), scoring)

    def _full_kl(
        self, scoring: Scoring, states: Tensor, spec: FullKL, temperature: float
    ) -> Tensor:
        with torch.no_grad(), self.tuning.active(None):
            ref_states = self._states(scoring)
            ref_weight, ref_bias = (
                None if part is None else part.detach()  # stays the reference's outside as well
                for part in (self.head.weight, self.head.bias)
            )
        return kl_exact(
            states,
            ref_states,
            self.head.weight,
            ref_weight=ref_weight,
            ref_bias=ref_bias,
            direction=spec.direction,
            top_k=spec.top_k,
            temperature=temperature,
            logit_scale=self.head.logit_scale,
            softcap=self.head.softcap,
            bias=self.head.bias,
            workspace_bytes=self.workspace_bytes,
        )

    def _values(self, scoring: Scoring) -> Tensor:
        """Return v(state before the token) = w . h + b in float32, with the critic's adapter."""
        critic = self.critic or {}
        head = {VALUE_WEIGHT, VALUE_BIAS}
        with self.tuning.active({k: v for k, v in critic.items() if k not in head}):
            states = self._states(scoring)
        weight, bias = critic[VALUE_WEIGHT], critic[VALUE_BIAS]
        return F.linear(states.to(weight.dtype), weight, bias).squeeze(1)


def new_policy(
    base: BaseModel,
    config: ModelConfig,
    *,
    seed: int,
    critic: CriticChoice = CriticChoice.none,
    holds_reference: bool = True,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> Policy:
    """Return a policy that starts as its reference: `base`, or `base` with `model.adapter`.

    Attaches what trains and the fused kernels to `base.model`: call it once per loaded model.

    Args:
        base: The loaded model.
        config: Says what of the model trains, and from where.
        seed: The seed of new adapters, which depend on it alone and have B = 0.
        critic: Whether there is a critic.
        holds_reference: False saves the copy of the weights that `model.tuning=full` needs to score
            the reference policy.
        workspace_bytes: Bounds the temporary memory of the head's kernels.

    Returns:
        The policy.

    Raises:
        ValueError: `config` does not fit the model.
    """
    tuning: Tuning
    if config.tuning is TuningKind.full:
        tuning = FullWeights(base.model, dtype=base.dtype, holds_reference=holds_reference)
        adapter = tuning.masters
    else:
        tuning = attach(base.model, config.lora, dtype=base.dtype)
        adapter = _first_adapter(tuning, config, seed=seed, device=base.model.device)
    fuse(base.model, join=tuning.join)
    head = head_of(base.model)
    device = head.weight.device
    offloads = base.gradient_checkpointing is Checkpointing.offload
    critic_tensors = None
    if critic is CriticChoice.lora:
        if not isinstance(tuning, LoRA):
            raise ValueError(f"a critic needs model.tuning=lora, got {config.tuning.value}")
        num_hidden = head.weight.shape[1]
        # A seed of its own: the same A would start both adapters in the same subspace.
        critic_tensors = init_critic(
            tuning, num_hidden=num_hidden, seed=seed + 2**31, device=device
        )
    return Policy(
        model=base.model,
        tuning=tuning,
        head=head,
        adapter=adapter,
        critic=critic_tensors,
        offload=Offload(device) if offloads and device.type == "cuda" else None,
        gradient_checkpointing=base.gradient_checkpointing,
        shared_prefix=config.shared_prefix,
        workspace_bytes=workspace_bytes,
    )


def _first_adapter(
    lora: LoRA, config: ModelConfig, *, seed: int, device: torch.device
) -> dict[str, Tensor]:
    """Return a new adapter, or the one that `model.adapter` names, which is the reference, too."""
    if config.adapter is None or config.adapter_use is not AdapterUse.train:
        return init_adapter(lora, seed=seed, device=device)
    adapter = load_adapter(Path(config.adapter).expanduser(), lora, device=device)
    lora.reference = {key: tensor.detach().clone() for key, tensor in adapter.items()}
    return adapter


def init_critic(
    lora: LoRA, *, num_hidden: int, seed: int, device: torch.device
) -> dict[str, Tensor]:
    """Return a new critic: LoRA tensors as in `init_adapter`, a value head of zeros (V = 0).

    Args:
        lora: The shape of the adapter.
        num_hidden: The width of the hidden states.
        seed: The seed of A.
        device: The device of the tensors.

    Returns:
        The leaves that train, by name.
    """
    critic = init_adapter(lora, seed=seed, device=device)
    critic[VALUE_WEIGHT] = torch.zeros(1, num_hidden, device=device, requires_grad=True)
    critic[VALUE_BIAS] = torch.zeros(1, device=device, requires_grad=True)
    return critic


def _entropy_mode(spec: OutputSpec) -> EntropyMode:
    if spec.entropy_grad:
        return EntropyMode.differentiable
    return EntropyMode.value if spec.entropy else EntropyMode.none
