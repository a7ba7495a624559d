"""Load a base model and its tokenizer, frozen, on one device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlkit.models.config import (
    AdapterUse,
    AttentionImpl,
    Checkpointing,
    ModelConfig,
    QuantConfig,
    QuantKind,
)
from rlkit.models.quantised import is_quantised
from rlkit.models.quantize import (
    fp8_layers,
    into_fp8,
    is_nf4,
    misread_widths,
    quantisable,
    quantization_config,
    require_bitsandbytes,
    settle,
    tensors_of,
)
from rlkit.models.quiet import no_progress_bars, slow_step
from rlkit.models.resolved import ResolvedModel, resolve_model, with_merged_adapter
from rlkit.models.rope import fix_all_rows
from rlkit.models.sharded import shard_layers
from rlkit.models.source import SourceKind, kind_of, load_options, readable
from rlkit.models.special import describe_ids, stop_token_ids
from rlkit.models.views import model_on_views, shared_bytes
from rlkit.models.vocabulary import check_ids, pad_id, vocabulary_notes, with_rows
from rlkit.runtime.say import Say
from rlkit.types import Prompt

RECOMPUTES_FROM = 1_000_000_000
"""Parameters from which activations, not weights, decide what fits (a rule of thumb)."""
_NOT_QUANTISED = QuantConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A frozen causal language model with what the rest of rlkit asks about it."""

    model: PreTrainedModel
    """In eval mode; no parameter requires a gradient."""
    tokenizer: PreTrainedTokenizerBase
    """With a chat template; its own pad token may be missing, see `pad_token_id`."""
    location: str
    """The folder (or hub id) that it was loaded from, for other engines to load as well."""
    dtype: torch.dtype
    stop_ids: frozenset[int]
    gradient_checkpointing: Checkpointing
    """Never `auto`."""
    notes: tuple[str, ...]
    """One line on each thing that rlkit decided, with the reason."""

    @property
    def num_rows(self) -> int:
        """Return the rows of the embedding: token ids must be below."""
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.weight.shape[0])

    @property
    def pad_token_id(self) -> int:
        """Return the id that fills batches up; it always has a row in the embedding."""
        return pad_id(self.tokenizer, self.num_rows)

    def check_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Raise ValueError, naming the prompt, when one has a token without a row."""
        for prompt in prompts:
            check_ids(
                prompt.ids, self.num_rows, where=f"prompt {prompt.index}", tokenizer=self.tokenizer
            )


def load_model(
    config: ModelConfig,
    *,
    device: torch.device,
    say: Say,
    quant: QuantConfig = _NOT_QUANTISED,
) -> BaseModel:
    """Resolve and load `config.source` with its tokenizer, frozen.

    Args:
        config: The options of the model.
        device: The device to load on.
        say: Takes a line before each slow step.
        quant: As in `load_resolved`.

    Returns:
        The model, its tokenizer, and what was decided about them.

    Raises:
        ValueError: Something does not fit; the message names the key, the rule and the value.
    """
    return load_resolved(resolve_model(config, device=device, say=say), say=say, quant=quant)


def load_resolved(
    resolved: ResolvedModel,
    *,
    say: Say,
    quant: QuantConfig = _NOT_QUANTISED,
    weights: Mapping[str, Tensor] | None = None,
    mesh: DeviceMesh | None = None,
) -> BaseModel:
    """Load a model that a start has resolved already, frozen.

    Args:
        resolved: The model; an adapter that it still lacks is merged first.
        say: Takes a line before each slow step.
        quant: Quantises the model on the way; a checkpoint that is NF4 already stays as it is.
        weights: Tensors of another engine, by parameter name. The model is then built on them: no
            second copy.
        mesh: The ranks that share the layers' weights; None = they are whole here.

    Returns:
        The model, its tokenizer, and what was decided about them.

    Raises:
        ValueError: Something does not fit; the message names the key, the rule and the value.
    """
    resolved = with_merged_adapter(resolved, say=say)
    config, tokenizer = resolved.config, resolved.tokenizer
    with readable(config), _loading(config, say):
        model, quant_notes = _load_on(resolved, quant, weights, mesh)
    model.requires_grad_(False).train(False)
    rope_notes = fix_all_rows(model, config.rope_length, source=config.source)
    generation = model.generation_config
    eos = None if generation is None else generation.eos_token_id
    stop_ids = stop_token_ids(tokenizer, eos)
    embedding: Any = model.get_input_embeddings()
    num_rows = int(embedding.weight.shape[0])
    checkpointing, checkpointing_note = resolve_checkpointing(config, model, resolved.device)
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        location=resolved.location,
        dtype=resolved.dtype,
        stop_ids=with_rows(stop_ids, num_rows),
        gradient_checkpointing=checkpointing,
        notes=(
            resolved.dtype_note,
            *quant_notes,
            *_adapter_notes(config, resolved.location),
            *rope_notes,
            *vocabulary_notes(tokenizer, num_rows, stop_ids),
            resolved.template_note,
            f"stop tokens: {describe_ids(tokenizer, stop_ids)}",
            checkpointing_note,
        ),
    )


def _loading(config: ModelConfig, say: Say) -> AbstractContextManager[None]:
    """Show a line for what may be a long download; a model on this machine is there in seconds."""
    if kind_of(config.source) is not SourceKind.hub:
        return nullcontext()
    return slow_step(f"Loading {config.source} (from the hub, downloaded once)", say=say)


def resolve_checkpointing(
    config: ModelConfig, model: PreTrainedModel, device: torch.device
) -> tuple[Checkpointing, str]:
    """Return whether to recompute activations in the backward pass, and one line that says why."""
    wanted = config.gradient_checkpointing
    if wanted is not Checkpointing.auto:
        return wanted, f"gradient checkpointing: {wanted.value}"
    billions = model.num_parameters() / 1e9
    large = device.type == "cuda" and model.num_parameters() >= RECOMPUTES_FROM
    state = Checkpointing.on if large else Checkpointing.off
    return state, f"gradient checkpointing: {state.value} (auto: {billions:.2f}B, {device.type})"


def _adapter_notes(config: ModelConfig, location: str) -> tuple[str, ...]:
    """Return a line on the adapter that the run starts from, if there is one."""
    if config.adapter is None:
        return ()
    if config.adapter_use is AdapterUse.merge:
        return (f"adapter: {config.adapter} merged, base and reference are {location}",)
    return (f"adapter: {config.adapter} trains on, the reference is the model with it as it was",)


def _load_on(
    resolved: ResolvedModel,
    quant: QuantConfig,
    weights: Mapping[str, Tensor] | None,
    mesh: DeviceMesh | None,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Return the model on its device, and a line on what of it is quantised, if anything is."""
    hf_config, dtype, device = resolved.hf_config, resolved.dtype, resolved.device
    if weights is not None:
        model = model_on_views(
            hf_config,
            weights,
            resolved.location,
            dtype=dtype,
            device=device,
            attention=_attention(resolved.config.attention, hf_config),
        )
        size = shared_bytes(model, weights) / 1e9
        note = f"base: {size:.2f} GB of weights shared with vLLM, no second copy"
        if count := sum(map(is_quantised, weights.values())):
            name = "fp8 (e4m3)" if quant.kind is QuantKind.fp8 else "NF4"
            note += f"; {count} linear layers in {name}"
        return model, (note,)
    if mesh is not None:
        if is_nf4(quant, hf_config):
            raise ValueError("memory.weights must be whole for a 4-bit model, got sharded")
        model = _load_weights(resolved, options={})
        return model, (shard_layers(model.requires_grad_(False), mesh, device=device),)
    if in_fp8 := fp8_layers(quant, hf_config):
        model = _load_weights(resolved, options={})
        into_fp8(model, sorted(in_fp8), device)
        return model, (_quant_note(model, len(in_fp8), "fp8 (e4m3)"),)
    if not is_nf4(quant, hf_config):
        model = _load_weights(resolved, options={})
        torch.nn.Module.to(model, device)
        return model, ()
    require_bitsandbytes()
    # Layer by layer on the device: the 16-bit model is never there as a whole.
    quantise = quantization_config(quant, hf_config, dtype)
    options = {"device_map": {"": device}, "quantization_config": quantise}
    model = _load_weights(resolved, options=options)
    note = _quant_note(model, settle(model, dtype), "NF4")
    if widths := misread_widths(model):
        listed = ", ".join(map(str, widths))
        return model, (note, f"warning: bitsandbytes misreads NF4 rows of {listed} on this CPU")
    return model, (note,)


def _quant_note(model: PreTrainedModel, count: int, name: str) -> str:
    total = len(quantisable(model))
    kept = "" if count == total else f", {total - count} kept in 16 bits"
    size = sum(t.nbytes for t in tensors_of(model)) / 1e9
    return f"base: {count} of {total} linear layers in {name}{kept}; {size:.2f} GB in all"


def _load_weights(resolved: ResolvedModel, *, options: dict[str, Any]) -> PreTrainedModel:
    """Return the model of safetensors files alone; a missing weight is an error, never random."""
    config, hf_config = resolved.config, resolved.hf_config
    try:
        with no_progress_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                resolved.location,
                config=hf_config,
                dtype=resolved.dtype,
                attn_implementation=_attention(config.attention, hf_config),
                use_safetensors=True,
                output_loading_info=True,
                **load_options(config),
                **options,
            )
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"model.source must hold weights of the shapes of its config, got {config.source}"
        ) from error
    model, report = loaded
    missing = sorted(report["missing_keys"]) + sorted(str(k) for k in report["mismatched_keys"])
    if missing:
        raise ValueError(
            f"model.source must hold every weight of its config, got {config.source} without "
            f"{', '.join(missing[:3])} ({len(missing)} in all)"
        )
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"expected a PreTrainedModel, got {type(model).__name__}")
    return model


def _attention(wanted: AttentionImpl, hf_config: PreTrainedConfig) -> str:
    if wanted is not AttentionImpl.auto:
        return wanted.value
    caps_scores = hf_config.to_dict().get("attn_logit_softcapping") is not None
    return "eager" if caps_scores else "sdpa"
