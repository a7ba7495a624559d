"""This module does the work of `rlkit quantize`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from rlkit.assembly.device import resolve_device
from rlkit.config import Config
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.models.config import DType, QuantConfig, QuantKind
from rlkit.models.load import BaseModel, load_model, load_resolved
from rlkit.models.quantize import require_bitsandbytes, saved_quantization, tensors_of
from rlkit.models.quantize_error import (
    UnitError,
    keep_worst,
    mean_kl,
    measure_units,
    next_token_logps,
)
from rlkit.models.quiet import no_progress_bars
from rlkit.models.resolved import resolve_model
from rlkit.tasks import Task, build_task, with_environment
from rlkit.tasks.render import render_all
from rlkit.training.memory_config import parse_bytes

_SHOWN = 12
_RECORD = "rlkit_quantize.json"


def quantise(overrides: Sequence[str], out: str, budget: str, num_prompts: int) -> None:
    """Measure, choose, save, load again and compare.

    Args:
        overrides: Options of the model to quantise, `key=value`.
        out: Folder to write.
        budget: Size of the folder, as the user wrote it.
        num_prompts: Prompts to measure errors on, >= 1.

    Raises:
        ValueError: A step is refused, with one line.
    """
    register()
    (config, *others) = preflight(overrides)
    if others:
        raise ValueError("rlkit quantize takes one model, not a sweep")
    folder = Path(out)
    if folder.exists():
        raise ValueError(f"out must be a new folder, got {folder}")
    budget_bytes = parse_bytes(budget, name="budget")
    require_bitsandbytes()
    device = resolve_device(config.device)
    model = resolve_model(config.model, device=device, say=print)
    if saved_quantization(model.hf_config) is not None:
        raise ValueError(
            f"model.source must hold 16- or 32-bit weights, got {config.model.source} in NF4"
        )
    task = with_environment(build_task(config.task), config.environment)
    base = load_resolved(model, say=print)
    prompts = _prompts(config, task, base, 2 * num_prompts)
    calibration, held_out = prompts[:num_prompts], prompts[num_prompts:]
    with torch.no_grad():
        reference = [next_token_logps(base.model, ids).cpu() for ids in held_out]
    double_quant = config.memory.quant.double_quant
    errors = measure_units(base.model, calibration, double_quant=double_quant)
    kept = keep_worst(errors, budget_bytes=budget_bytes)
    _print(errors, kept, budget_bytes)
    plain = QuantConfig(kind=QuantKind.nf4, double_quant=double_quant)
    skip = [name for unit in kept for name in unit.layers]
    dynamic = replace(plain, skip=skip)
    del base
    results = {}
    # What stays is 16 bits in the folder, also where `auto` computes in float32.
    stored = config.model
    if stored.dtype in (DType.auto, DType.fp32):
        stored = replace(stored, dtype=DType.bf16)
    for name, quant in (("NF4", plain), ("NF4, worst kept", dynamic)):
        loaded = load_model(stored, device=device, say=print, quant=quant)
        results[name] = _compare(loaded.model, held_out, reference)
    _save(loaded, folder, errors, kept, results)
    written = replace(stored, source=str(folder), revision=None)
    again = load_model(written, device=device, say=print)
    results["the folder"] = _compare(again.model, held_out, reference)
    print(f"{'':<18}{'GB':>7}  KL to 16 bits on {len(held_out)} held-out prompts, nats a token")
    for name, (num_bytes, kl) in results.items():
        print(f"{name:<18}{num_bytes / 1e9:7.3f}  {kl:.5f}")
    print(f"written: {folder}")


def _prompts(config: Config, task: Task, base: BaseModel, count: int) -> list[tuple[int, ...]]:
    indices = range(min(count, task.train.size or count))
    rendered = render_all(
        task.train,
        indices,
        base.tokenizer,
        max_length=task.max_prompt_length,
        overlong=config.task.overlong_prompts,
    )
    return [prompt.ids for prompt in rendered.prompts]


def _compare(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], reference: list[torch.Tensor]
) -> tuple[int, float]:
    """Return (bytes, KL of the 16-bit model to this one)."""
    with torch.no_grad():
        logps = [next_token_logps(model, ids).cpu() for ids in prompts]
    return sum(t.nbytes for t in tensors_of(model)), mean_kl(reference, logps)


def _print(errors: Sequence[UnitError], kept: Sequence[UnitError], budget: int) -> None:
    chosen = {unit.unit for unit in kept}
    worst = sorted(errors, key=lambda e: e.kl, reverse=True)
    print(f"{'layers':<40} {'output error':>12} {'KL alone':>10} {'extra MB':>9}  kept")
    for error in worst[:_SHOWN]:
        mark = "16 bits" if error.unit in chosen else ""
        print(
            f"{error.unit:<40} {error.output_error:12.5f} {error.kl:10.2e} "
            f"{error.extra_bytes / 1e6:9.1f}  {mark}"
        )
    spent = sum(unit.extra_bytes for unit in kept)
    print(f"{len(kept)} of {len(errors)} kept: {spent / 1e6:.1f} of {budget / 1e6:.1f} MB")


def _save(
    loaded: BaseModel,
    folder: Path,
    errors: Sequence[UnitError],
    kept: Sequence[UnitError],
    results: dict[str, tuple[int, float]],
) -> None:
    with no_progress_bars():
        loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    record = {
        "kept": [unit.unit for unit in kept],
        "units": [error._asdict() for error in errors],
        "bytes_and_kl": results,
    }
    (folder / _RECORD).write_text(json.dumps(record, indent=1) + "\n")
