"""These are facts about a run before anything is loaded, and its sizes, each computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from transformers import PreTrainedConfig

from rlkit.generation.demand import Sampler
from rlkit.kernels.workspace import logps_workspace_bytes
from rlkit.models.config import Checkpointing, LoRAConfig, QuantConfig, QuantKind, TuningKind
from rlkit.models.quantize import kind_of, meta_model
from rlkit.plan import sizes
from rlkit.plan.simulate import Peaks, TrainingWork, peaks
from rlkit.policy.lora import stored_dtype
from rlkit.ranks.deal import fullest
from rlkit.reward_models.size import NO_SCORERS, ScorerBytes
from rlkit.training.optim import OptimKind


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """This record is one run's demands; sizes that need a look at the model come at first use."""

    hf_config: PreTrainedConfig
    dtype: torch.dtype
    quant: QuantConfig
    lora: LoRAConfig
    optim: OptimKind
    sampler: Sampler
    releases_kv: bool
    """Whether an engine gives its cache back before the update."""
    kv_value_bytes: int
    """One key or value entry has this many."""
    num_prompts: int
    """A step has this many."""
    group_size: int
    max_prompt: int
    max_completion: int
    max_at_once: int
    """Most completions sampled at once."""
    rows_per_unit: int
    """Completions that must share a micro-batch."""
    critic: bool
    """A second adapter."""
    full_kl: bool
    """Whether a loss looks at the whole vocabulary of policy and reference."""
    on_cuda: bool
    engine_in_nf4: bool = False
    """Whether an engine with weights of its own has them in NF4, whatever the trainer has."""
    engine_parts: int = 1
    """Ranks that share one engine, and sample their prompts together."""
    tuning: TuningKind = TuningKind.lora
    holds_reference: bool = False
    """Whether anything scores the reference policy, which `TuningKind.full` must keep for it."""
    keeps_first_adapter: bool = False
    """Whether the reference policy is an adapter that trains on, kept as it was."""
    ranks: int = 1
    """Processes of the run, each with a device of its own."""
    is_sharded: bool = False
    """Whether each of them keeps a part of the frozen layers alone."""
    longest_prompt: int | None = None
    """The prompts that the run has, on a CPU; None = `max_prompt`."""
    shares_prompts: bool = True
    """Whether equal prompts of a micro-batch are computed once."""
    sampled_tokens: int | None = None
    """All completions of a step, once they are known; None = all have `max_completion`."""
    scorers: ScorerBytes = NO_SCORERS
    """Reward models on the run's device."""
    eval_prompts: int = 0
    """Held-out prompts whose completions are scored for their KL; 0 = none."""
    eval_samples: int = 0
    """Completions of each of them."""
    spare_tokens: int = 0
    """Places of the key-value cache beyond a row's longest, for wrong guesses."""

    @property
    def row_tokens(self) -> int:
        """Return the longest prompt and completion."""
        return self.max_prompt + self.max_completion

    @property
    def prompt_tokens(self) -> int:
        """Return the longest prompt that is expected."""
        return self.max_prompt if self.longest_prompt is None else self.longest_prompt

    @property
    def step_tokens(self) -> int:
        """Return the most tokens of a step; a CPU's plan computes the known prompts once a group.

        A card's plan, tried on the device before the first step, takes rows of full length.
        """
        if self.on_cuda:
            return self.num_rows * self.row_tokens
        prompts = self.num_prompts if self.shares_prompts else self.num_rows
        sampled = self.sampled_tokens
        if sampled is None:
            sampled = self.num_rows * self.max_completion
        return prompts * self.prompt_tokens + sampled

    @property
    def num_rows(self) -> int:
        """Return completions of a step."""
        return self.num_prompts * self.group_size

    @property
    def rows_together(self) -> int:
        """Return completions of a step that one engine samples, for all ranks that share it."""
        return self.num_rows * self.engine_parts

    @property
    def unit_tokens(self) -> int:
        """Return tokens of the longest unit: no micro-batch is smaller in the worst case.

        With a critic twice as many, as its graph lives beside the policy's.
        """
        return self.rows_per_unit * self.row_tokens * (2 if self.critic else 1)

    @cached_property
    def model(self) -> nn.Module:
        """Return names and shapes."""
        return meta_model(self.hf_config)

    @cached_property
    def weight_bytes(self) -> int:
        """Return the base model."""
        return sizes.weight_bytes(self.model, self.hf_config, self.dtype, self.quant)

    @cached_property
    def held_bytes(self) -> int:
        """Return what a rank holds of the base model, at its peak."""
        if not self.is_sharded:
            return self.weight_bytes
        return sizes.sharded_bytes(self.model, self.dtype, self.ranks)

    @cached_property
    def engine_weight_bytes(self) -> int:
        """Return the base model of an engine that has weights of its own."""
        if not self.engine_in_nf4:
            return self.weight_bytes // self.engine_parts
        quant = QuantConfig(kind=QuantKind.nf4, double_quant=self.quant.double_quant)
        return sizes.weight_bytes(self.model, self.hf_config, self.dtype, quant)

    @property
    def trains_all(self) -> bool:
        """Return whether the model itself trains, instead of an adapter."""
        return self.tuning is TuningKind.full

    @cached_property
    def num_trained(self) -> int:
        """Return trained parameters: of the model, or of the adapters of policy and critic."""
        if self.trains_all:
            return self.num_weights
        adapters = 2 if self.critic else 1
        return adapters * sizes.num_adapter_parameters(self.model, self.lora)

    @property
    def num_layers(self) -> int:
        """Return decoder layers."""
        return int(self.hf_config.get_text_config().num_hidden_layers)

    @cached_property
    def num_weights(self) -> int:
        """Return entries of the model's tensors, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def trained_dtype(self) -> torch.dtype:
        """Return the type of what trains, its gradients and AdamW's full moments."""
        return torch.float32 if self.trains_all else stored_dtype(self.lora)

    @property
    def trained_bytes(self) -> int:
        """Return the bytes of what trains, and of its gradients."""
        return self.num_trained * self.trained_dtype.itemsize

    @property
    def first_adapter_bytes(self) -> int:
        """Return the bytes of the adapter that stays as the reference policy."""
        if self.trains_all or not self.keeps_first_adapter:
            return 0
        numel = sizes.num_adapter_parameters(self.model, self.lora)
        return numel * self.trained_dtype.itemsize

    @cached_property
    def num_kept(self) -> int:
        """Return trained parameters that one rank steps, at most, where they are spread."""
        if self.trains_all and self.ranks > 1:
            return fullest([p.numel() for p in self.model.parameters()], self.ranks)
        return self.num_trained

    @property
    def master_bytes(self) -> int:
        """Return the bytes of the float32 masters that a rank keeps of a 16-bit model."""
        has_masters = self.trains_all and self.dtype.itemsize < torch.float32.itemsize
        return self.num_kept * torch.float32.itemsize if has_masters else 0

    @property
    def moment_bytes(self) -> int:
        """Return the bytes of the optimiser's moments, of one rank where they are spread."""
        return sizes.moment_bytes(self.num_kept, self.optim, dtype=self.trained_dtype)

    @property
    def num_adapter(self) -> int:
        """Return trained parameters that are not the model's own."""
        return 0 if self.trains_all else self.num_trained

    @property
    def kv_token_bytes(self) -> int:
        """Return keys and values of one token."""
        whole = sizes.kv_bytes_per_token(self.hf_config, bytes_per_value=self.kv_value_bytes)
        text = self.hf_config.get_text_config()
        heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
        # A head of keys that there are fewer of than ranks is on several of them.
        return whole // min(self.engine_parts, heads)

    @property
    def num_words(self) -> int:
        """Return V."""
        return int(self.hf_config.get_text_config().vocab_size)

    def activation_bytes(
        self, num_tokens: int, *, checkpointing: Checkpointing, workspace_bytes: int
    ) -> int:
        """Return the peak of a micro-batch: activations, log-prob workspace, temporary weights."""
        peak = self._simulated(num_tokens, checkpointing).with_workspace(workspace_bytes)
        if self.full_kl:  # states of the reference, and their share of the gradient
            peak += 2 * num_tokens * int(self.hf_config.hidden_size) * self.dtype.itemsize
            if self.trains_all:  # a second gradient of the head, summed in float32
                peak += 4 * self.num_words * int(self.hf_config.hidden_size)
        return peak

    def evaluation_bytes(self, most_tokens: int, *, workspace_bytes: int) -> int:
        """Return the peak of scoring held-out completions for exact KL, `most_tokens` at once."""
        of_prompts = self.eval_prompts * self.prompt_tokens
        completions = self.eval_prompts * self.eval_samples * self.max_completion
        tokens = min(most_tokens, of_prompts + completions)
        if tokens == 0:
            return 0
        rows = 2 * tokens * completions // (of_prompts + completions)  # policy and reference
        width = int(self.hf_config.hidden_size)
        states = 2 * tokens * width * self.dtype.itemsize
        workspace = logps_workspace_bytes(rows, self.num_words, width, dtype=self.dtype)
        return self.prefill_bytes(tokens) + states + min(workspace_bytes, workspace)

    def prefill_bytes(self, num_tokens: int) -> int:
        """Return the peak of a forward pass without gradients."""
        return self._simulated(num_tokens, Checkpointing.off, with_gradient=False).layers

    def _simulated(
        self, num_tokens: int, checkpointing: Checkpointing, *, with_gradient: bool = True
    ) -> Peaks:
        scored = num_tokens * self.max_completion // self.row_tokens
        work = TrainingWork(
            num_tokens=num_tokens,
            num_scored=max(1, scored) if with_gradient else 1,
            dtype=self.dtype,
            quant=kind_of(self.quant, self.hf_config),
            lora_rank=self.lora.rank,
            lora_targets=tuple(self.lora.targets),
            checkpointing=checkpointing,
            ragged=self.on_cuda and self.dtype is not torch.float32,
            with_gradient=with_gradient,
            tuning=self.tuning,
        )
        return peaks(self.hf_config, work)
