"""Load an export again with the library that will use it, and compare it with the trained policy.

The log-probs along the policy's own answers are compared. There are the largest and the mean
difference of the answer's tokens. KL(policy || export) of the next-token distributions is a mean
over tokens.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlkit.exports.formats import Format, Kind
from rlkit.exports.gguf.llama import LlamaAnswer, LlamaRequest, ask_llama
from rlkit.exports.reference import Reference, ScoredRow, greedy, logps_of, quant_of
from rlkit.exports.trained import TrainedPolicy
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """This record holds how far an export is from the trained policy."""

    format: str
    loader: str
    """The library and its version."""
    num_tokens: int
    max_difference: float
    """Nats, of a token of the policy's answers."""
    mean_difference: float
    kl: float
    """Nats a token."""
    max_kl: float
    """The bound."""
    success: float | None
    policy_success: float | None

    @property
    def line(self) -> str:
        """Return the figures in one line."""
        text = (
            f"KL(policy || export) {self.kl:.1e} nats a token (bound {self.max_kl:g}), log-probs "
            f"differ by {self.mean_difference:.1e} on average and {self.max_difference:.1e} at most"
        )
        if self.success is not None and self.policy_success is not None:
            text += f", success {self.success:.2f} (policy {self.policy_success:.2f})"
        return text


def check(proof: Proof) -> None:
    """Raise ValueError when an export is further from the policy than its bound."""
    if not proof.kl <= proof.max_kl:
        raise ValueError(
            f"{proof.format} must be the run's policy within {proof.max_kl:g} nats a token "
            f"(--max-kl), got KL {proof.kl:.3g}"
        )


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
    rows = [_compare_whole(row, logps_of(model, row)) for row in reference.rows]
    success = None
    if reference.success is not None:
        success = reference.judge(greedy(model, trained, reference.prompts))
    return _proof(format, loader, rows, success, reference)


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
    prompts = [list(p.ids) for p in reference.prompts] if reference.success is not None else []
    longest = max(len(prompt.ids) for prompt in reference.prompts) + reference.max_tokens
    request = LlamaRequest(
        model=str(file),
        lora="" if lora is None else str(lora),
        rows=[
            list(row.ids[: n + 1]) for row in reference.rows for n in range(row.first, len(row.ids))
        ],
        plain_token=int(trained.tokenizer("a", add_special_tokens=False)["input_ids"][-1]),
        prompts=prompts,
        max_tokens=reference.max_tokens,
        texts=texts,
        threads=len(os.sched_getaffinity(0)),
        context=longest + _MODEST,
    )
    answer = ask_llama(request)
    _check_tokens(trained, texts, answer)
    rows, place = [], 0
    for row in reference.rows:
        found = answer.likeliest[place : place + len(row.logps)]
        rows.append(_compare_likeliest(row, found))
        place += len(row.logps)
    success = reference.judge(_ended(trained, answer.completions)) if prompts else None
    return _proof(format, _version("xllamacpp"), rows, success, reference)


@dataclass(frozen=True, slots=True)
class _Compared:
    """This record holds the comparison along one row."""

    kl: Tensor
    """(T,) nats."""
    differences: Tensor
    """(T - 1,) of the answer's tokens that follow, nats, >= 0."""


def _compare_whole(row: ScoredRow, other: Tensor) -> _Compared:
    kl = F.kl_div(other, row.logps, log_target=True, reduction="none").sum(-1)
    tokens = torch.tensor(row.ids[row.first + 1 :])[:, None]
    ours, theirs = (x[: len(tokens)].gather(1, tokens) for x in (row.logps, other))
    return _Compared(kl, (ours - theirs).abs().flatten())


def _compare_likeliest(
    row: ScoredRow, found: Sequence[tuple[Sequence[int], Sequence[float]]]
) -> _Compared:
    """Compare where only the likeliest tokens of the export are known; the others count as one.

    Joining tokens can only make KL smaller, by less than their mass says.
    """
    kl, differences = [], []
    next_tokens = (*row.ids[row.first + 1 :], None)
    for logps, (ids, values), token in zip(row.logps, found, next_tokens, strict=True):
        p = logps[torch.tensor(ids)].double()
        q = torch.tensor(values, dtype=torch.float64)
        rest_p = max(1.0 - float(p.exp().sum()), 1e-12)
        rest_q = max(1.0 - float(q.exp().sum()), 1e-12)
        value = float((p.exp() * (p - q)).sum())
        if len(ids) < len(logps):
            value += rest_p * math.log(rest_p / rest_q)
        kl.append(max(value, 0.0))
        if token is not None and token in ids:
            differences.append(abs(float(logps[token]) - values[list(ids).index(token)]))
    return _Compared(torch.tensor(kl), torch.tensor(differences))


def _proof(
    format: Format,
    loader: str,
    rows: Sequence[_Compared],
    success: float | None,
    reference: Reference,
) -> Proof:
    kl = torch.cat([row.kl.double() for row in rows])
    differences = torch.cat([row.differences.double() for row in rows])
    return Proof(
        format=format.name,
        loader=loader,
        num_tokens=len(kl),
        max_difference=float(differences.max()) if len(differences) else 0.0,
        mean_difference=float(differences.mean()) if len(differences) else 0.0,
        kl=float(kl.mean()),
        max_kl=format.max_kl,
        success=success,
        policy_success=reference.success,
    )


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
