"""This module does the work of `rlkit export`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rlkit.assembly.device import resolve_device
from rlkit.cli.run_folder import RunOptions, read_options
from rlkit.models.config import DType, ModelConfig, TuningKind
from rlkit.models.load import BaseModel, load_model
from rlkit.models.quantize_error import mean_kl, next_token_logps
from rlkit.models.resolved import resolve_dtype
from rlkit.models.save import MODEL_FOLDER, save_model
from rlkit.policy.lora import attach
from rlkit.policy.lora_files import ADAPTER_FOLDER, load_adapter, read_adapter_config
from rlkit.policy.lora_merge import merged_weights
from rlkit.tasks.base import Example, Message
from rlkit.tasks.render import render

_TEXTS = (
    "What is 17 + 25? Think step by step.",
    "Write one sentence about the sea.",
    "Repeat the word inside the tags: <answer>lantern</answer>",
)
_FAR = 0.05
"""Nats a token. Rounding to 16 bits costs about 1e-3; another model costs whole nats."""


def export(run: Path, out: Path, dtype: DType) -> None:
    """Write, load again and compare; raises ValueError with one line, and then leaves nothing.

    The comparison is KL(the run's policy || the folder) of next-token distributions on a few chat
    prompts. A folder that loads as another model is not left behind.
    """
    options = read_options(run, key="--run")
    if out.exists():
        raise ValueError(f"--out must be a new folder, got {out}")
    device = resolve_device(options.device)
    base, weights, prompts, reference = _policy_of(run, options, device, dtype)
    size = sum(tensor.nbytes for tensor in weights.values()) / 1e9
    print(f"writing {len(weights)} tensors, {size:.2f} GB in {dtype.value} ...")
    save_model(out, base.model, base.tokenizer, weights)
    del base, weights
    try:
        again = load_model(ModelConfig(source=str(out), dtype=dtype), device=device, say=print)
        kl = mean_kl(reference, _logps(again, prompts))
        if not kl <= _FAR:
            raise ValueError(f"the folder must be the run's policy, got KL {kl:.3g} nats a token")
    except BaseException:
        shutil.rmtree(out)
        raise
    print(f"loaded again: KL(policy of the run || folder) {kl:.1e} nats a token")
    print(f"written: {out}")


def _policy_of(
    run: Path, options: RunOptions, device: torch.device, dtype: DType
) -> tuple[BaseModel, dict[str, Tensor], list[tuple[int, ...]], list[Tensor]]:
    """Return the run's model, what to write of it, prompts, and its log-probs on them."""
    stored, _ = resolve_dtype(dtype, device)
    if options.model.tuning is TuningKind.full:
        source = replace(
            options.model,
            source=str(run / MODEL_FOLDER),
            revision=None,
            # The folder's tokenizer was saved with the template that these chose.
            chat_template_name="",
            chat_template_kwargs={},
        )
        base = load_model(source, device=device, say=print)
        weights = {n: p.detach().to("cpu", stored) for n, p in base.model.named_parameters()}
        prompts = _prompts(base)
        return base, weights, prompts, _logps(base, prompts)
    folder = run / ADAPTER_FOLDER
    config = read_adapter_config(folder)
    base = load_model(options.model, device=device, say=print, quant=options.memory.quant)
    lora = attach(base.model, config, dtype=base.dtype)
    adapter = load_adapter(folder, lora, device=device)
    prompts = _prompts(base)
    reference = _logps(base, prompts, within=lora.active(adapter))
    return base, merged_weights(base.model, lora, adapter, dtype=stored), prompts, reference


def _prompts(base: BaseModel) -> list[tuple[int, ...]]:
    examples = [Example(prompt=(Message("user", text),)) for text in _TEXTS]
    return [render(e, base.tokenizer, index=i).ids for i, e in enumerate(examples)]


def _logps(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    *,
    within: AbstractContextManager[None] | None = None,
) -> list[Tensor]:
    with torch.no_grad(), within or nullcontext():
        return [next_token_logps(base.model, ids).cpu() for ids in prompts]
