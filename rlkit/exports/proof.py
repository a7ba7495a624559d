"""Load an export again with the libraries that will use it, and ask each what the policy said."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlkit.exports.compare import Compared, Proof, compare_likeliest, compare_whole, proof_of
from rlkit.exports.formats import Format, Kind
from rlkit.exports.gguf.llama import LlamaAnswer, LlamaRequest, ask_llama
from rlkit.exports.reference import Reference, greedy, logps_of, quant_of
from rlkit.exports.trained import TrainedPolicy
from rlkit.exports.vllm_loader import (
    NUM_LIKELIEST,
    VLLMAnswer,
    VLLMRequest,
    ask_vllm,
    memory_share,
    vllm_version,
)
from rlkit.generation.stopping import StopRule
from rlkit.models.load import load_model
from rlkit.models.quantize import settle
from rlkit.models.quiet import no_progress_bars

_MODEST = 512
"""Tokens of context beyond a row, for llama.cpp's batches."""
_TEXTS = (
    "In 2026, 3.14 and 12,345 apples cost $6.50!\n\n  Two spaces,\ttab.",
    "don't you'll WE'RE  naïve café — 日本語 Привет 🙂",
    "def f(x):\n    return x**2 + 1  # comment\r\n",
)
"""Texts that tokenizers split differently, when they do."""


def prove_hf(
    folder: Path,
    format: Format,
    trained: TrainedPolicy,
    reference: Reference,
    *,
    device: torch.device,
) -> Proof:
    """Load a folder with transformers, or an adapter with PEFT, and compare.

    Args:
        folder: The folder of the export.
        format: Its format.
        trained: The policy.
        reference: Its answers.
        device: The device to compute on.

    Returns:
        The figures.

    Raises:
        ValueError: The library cannot load the folder.
    """
    try:
        # compressed-tensors draws bars of its own while it loads.
        with no_progress_bars(), redirect_stderr(StringIO()):
            load = _with_peft if format.kind is Kind.adapter else _with_transformers
            model, loader = load(folder, trained, device)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{format.name} must load again, got {reason}") from error
    model.requires_grad_(False).train(False)
    rows = [compare_whole(row, logps_of(model, row)) for row in reference.rows]
    success = None
    if reference.success is not None:
        success = reference.judge(greedy(model, trained, reference.prompts))
    return proof_of(format, loader, rows, success, reference)


def prove_gguf(
    file: Path, format: Format, trained: TrainedPolicy, reference: Reference, *, lora: Path | None
) -> Proof:
    """Load a GGUF file with llama.cpp, with an adapter if there is one, and compare.

    Args:
        file: The GGUF file of a model.
        format: The format that is proven.
        trained: The policy.
        reference: Its answers.
        lora: The GGUF file of an adapter for the model, or None.

    Returns:
        The figures.

    Raises:
        ValueError: llama.cpp cannot load the file, or finds other tokens in a text.
    """
    texts = [prompt.text for prompt in reference.prompts] + list(_TEXTS)
    request = LlamaRequest(
        model=str(file),
        lora="" if lora is None else str(lora),
        rows=_beginnings(reference),
        plain_token=int(trained.tokenizer("a", add_special_tokens=False)["input_ids"][-1]),
        prompts=reference.to_complete,
        max_tokens=reference.max_tokens,
        texts=texts,
        threads=len(os.sched_getaffinity(0)),
        context=reference.longest + _MODEST,
    )
    answer = ask_llama(request)
    _check_tokens(trained, texts, answer)
    return _proof_by_answers(format, _version("xllamacpp"), trained, reference, answer)


def prove_vllm(
    folder: Path,
    format: Format,
    trained: TrainedPolicy,
    reference: Reference,
    *,
    device: torch.device,
) -> Proof:
    """Load a folder with vLLM in a process of its own, and compare.

    Args:
        folder: The folder of the export.
        format: Its format.
        trained: The policy.
        reference: Its answers.
        device: The device to compute on.

    Returns:
        The figures.

    Raises:
        ValueError: vLLM, or the hardware, cannot load or run the folder.
    """
    request = VLLMRequest(
        model=str(folder),
        dtype=str(json.loads((folder / "config.json").read_text()).get("dtype") or "auto"),
        allow_remote_code=trained.run.model.allow_remote_code,
        rows=_beginnings(reference),
        prompts=reference.to_complete,
        max_tokens=reference.max_tokens,
        stop_ids=sorted(trained.stops.ids),
        context=reference.longest + 1,
        num_likeliest=min(NUM_LIKELIEST, reference.rows[0].logps.shape[-1]),
        memory_share=memory_share(device),
    )
    answer = ask_vllm(request)
    return _proof_by_answers(format, vllm_version(), trained, reference, answer)


def _proof_by_answers(
    format: Format,
    loader: str,
    trained: TrainedPolicy,
    reference: Reference,
    answer: LlamaAnswer | VLLMAnswer,
) -> Proof:
    """Return the figures of an export that was asked in a process of its own."""
    success = None
    if reference.success is not None:
        success = reference.judge(_ended(trained, answer.completions))
    return proof_of(format, loader, _by_row(reference, answer.likeliest), success, reference)


def _beginnings(reference: Reference) -> list[list[int]]:
    """Return the tokens before each compared position, for loaders that are asked one by one."""
    return [
        list(row.ids[: n + 1]) for row in reference.rows for n in range(row.first, len(row.ids))
    ]


def _by_row(
    reference: Reference, likeliest: Sequence[tuple[Sequence[int], Sequence[float]]]
) -> list[Compared]:
    rows, place = [], 0
    for row in reference.rows:
        rows.append(compare_likeliest(row, likeliest[place : place + len(row.logps)]))
        place += len(row.logps)
    return rows


def _with_transformers(
    folder: Path, trained: TrainedPolicy, device: torch.device
) -> tuple[PreTrainedModel, str]:
    options: dict[str, Any] = {"trust_remote_code": trained.run.model.allow_remote_code}
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", device_map={"": device}, **options
    )
    if _in_nf4(model):
        settle(model, model.dtype)  # bitsandbytes would repack the layers of some CPUs
    return model, _version("transformers")


def _in_nf4(model: PreTrainedModel) -> bool:
    saved = getattr(model.config, "quantization_config", None)
    return getattr(saved, "quant_method", None) == "bitsandbytes"


def _with_peft(folder: Path, trained: TrainedPolicy, device: torch.device) -> tuple[Any, str]:
    from peft import PeftModel

    base = load_model(
        trained.run.model, device=device, say=lambda _: None, quant=quant_of(trained)
    ).model
    model: Any = PeftModel.from_pretrained(base, folder)
    return model.get_base_model(), _version("peft")


def _version(name: str) -> str:
    return f"{name} {version(name)}"


def _check_tokens(trained: TrainedPolicy, texts: Sequence[str], answer: LlamaAnswer) -> None:
    for text, found in zip(texts, answer.tokens, strict=True):
        ids = list(trained.tokenizer(text, add_special_tokens=False)["input_ids"])
        if ids != found:
            place = next(
                (i for i, (a, b) in enumerate(zip(ids, found, strict=False)) if a != b),
                min(len(ids), len(found)),
            )
            raise ValueError(
                f"llama.cpp must find the tokens of the run's tokenizer in {text[:60]!r}, got "
                f"{found[place : place + 4]} instead of {ids[place : place + 4]} at token {place}"
            )


def _ended(trained: TrainedPolicy, completions: Sequence[Sequence[int]]) -> list[list[int]]:
    """Cut completions where the run would have ended them."""
    rule = StopRule(trained.tokenizer, token_ids=trained.stops.ids, strings=trained.stops.strings)
    return [list(ids[: rule.tokens_kept(list(ids), 0)]) for ids in completions]
