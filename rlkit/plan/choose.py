"""This module fits a run into its device: the fastest choice that fits, or a line why none does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlkit.generation.demand import Sampler
from rlkit.models.config import Checkpointing, QuantConfig, QuantKind, TuningKind
from rlkit.plan.candidates import candidates, least_choice
from rlkit.plan.cost import explained
from rlkit.plan.parts import (
    ENGINES,
    GB,
    Choice,
    Part,
    Request,
    kv_bytes,
    parts_of,
    sampling_bytes,
    update_bytes,
)
from rlkit.plan.work import Work
from rlkit.training.optim import OptimKind

_MARGIN = 0.03
_MOST_MARGIN = 500_000_000
"""Left free of the budget, as a share and at most: allocators round up and leave holes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan is the memory that a run will take, and how it was made to fit."""

    parts: tuple[Part, ...]
    choice: Choice
    kv_cache_bytes: int
    """An engine in this process takes this; 0 = none."""
    budget: int
    """The device has this much for the run."""
    why: str = ""
    """The estimated seconds by which the choice was made."""

    @property
    def sampling(self) -> int:
        """Return the peak bytes while completions are sampled."""
        return sum(part.sampling for part in self.parts)

    @property
    def training(self) -> int:
        """Return the peak bytes of the update."""
        return sum(part.training for part in self.parts)

    @property
    def peak(self) -> int:
        """Return the most bytes at any time."""
        return max(self.sampling, self.training)

    @property
    def fits(self) -> bool:
        """Return whether the device has enough."""
        return self.peak <= self.budget - _margin(self.budget)


class DoesNotFit(ValueError):
    """The run needs more memory than there is; the message is one line with the way out."""


def make_plan(work: Work, request: Request, *, budget: int, before: Choice | None = None) -> Plan:
    """Return the fastest plan that fits, by the estimates of `rlkit.plan.cost`.

    Args:
        work: The demands of the run.
        request: The choices that the configuration made, and those it leaves.
        budget: Bytes of the device that the run may take.
        before: The choice of a run that now goes on. It comes first, as another split rounds
            otherwise.

    Returns:
        The plan.

    Raises:
        DoesNotFit: No choice fits into the budget.
    """
    # An engine's step of no size: recorded by a version that did not choose it.
    if before is not None and (before.engine_tokens or work.sampler not in ENGINES):
        again = _plan(work, request, before, budget)
        if again.fits:
            return again
    least = least_plan(work, request, budget=budget)
    if not least.fits:
        raise DoesNotFit(_refusal(work, request, least))
    too_large: dict[Checkpointing, int] = {}
    for choice in candidates(work, request):
        size, mode = choice.tokens_per_microbatch, choice.checkpointing
        if size >= too_large.get(mode, size + 1):
            continue
        if sampling_bytes(work, request, choice) > budget - _margin(budget):
            continue
        plan = _plan(work, request, choice, budget)
        if plan.fits:
            return plan
        alone = update_bytes(work, choice._replace(workspace_bytes=0))
        if alone > budget - _margin(budget):  # whatever else is chosen
            too_large[mode] = min(size, too_large.get(mode, size))
    return least


def least_plan(work: Work, request: Request, *, budget: int) -> Plan:
    """Return the plan that takes least: the smallest micro-batch, one completion at once."""
    return _plan(work, request, least_choice(work, request), budget)


def _margin(budget: int) -> int:
    return int(min(_MARGIN * budget, _MOST_MARGIN))


def _plan(work: Work, request: Request, choice: Choice, budget: int) -> Plan:
    return Plan(
        parts=parts_of(work, request, choice),
        choice=choice,
        kv_cache_bytes=kv_bytes(work, request, choice.at_once) if work.sampler in ENGINES else 0,
        budget=budget,
        why=explained(work, choice),
    )


def _refusal(work: Work, request: Request, least: Plan) -> str:
    need = min(least.peak / (1.0 - _MARGIN), least.peak + _MOST_MARGIN) / GB
    have = least.budget / GB
    text = f"memory must be at least {need:.2f} GB for this run, got {have:.2f} GB"
    for key, other, asked in _remedies(work, request):
        plan = least_plan(other, asked, budget=least.budget)
        if plan.fits:
            return f"{text}; {key} makes it fit ({plan.peak / GB:.2f} GB)"
    return f"{text}; no single option makes it fit: a smaller model or larger card would"


def _remedies(work: Work, request: Request) -> Sequence[tuple[str, Work, Request]]:
    """Return single changes, the one that costs least first."""
    found: list[tuple[str, Work, Request]] = []
    if request.checkpointing is not Checkpointing.auto:
        free = replace(request, checkpointing=Checkpointing.auto)
        found.append(("model.gradient_checkpointing=auto", work, free))
    if request.tokens_per_microbatch == 0 and work.unit_tokens < work.num_rows * work.row_tokens:
        split = replace(request, tokens_per_microbatch=work.unit_tokens)
        found.append((f"memory.tokens_per_microbatch={work.unit_tokens}", work, split))
    if request.kv_cache_bytes:
        found.append(("generator.kv_cache_bytes=0", work, replace(request, kv_cache_bytes=0)))
    if work.sampler in ENGINES:
        if not work.releases_kv and work.on_cuda:
            released = replace(work, releases_kv=True)
            found.append(("generator.release_kv_cache=true", released, request))
        if work.sampler is not Sampler.vllm and work.engine_parts == 1:
            shared = replace(work, sampler=Sampler.vllm)
            found.append(("generator.weights=shared", shared, request))
    if work.optim is OptimKind.adamw:
        found.append(("optim=adamw8bit", replace(work, optim=OptimKind.adamw8bit), request))
    if work.trains_all:
        adapter = replace(work, tuning=TuningKind.lora)
        found.append(("model.tuning=lora", adapter, request))
    in_16_bits = work.quant.kind is QuantKind.none and not work.trains_all
    if in_16_bits and work.ranks > 1 and not work.is_sharded:
        found.append(_sharded(work, request))  # unlike 4 bits it changes no number
    if in_16_bits:
        nf4 = replace(work, quant=QuantConfig(kind=QuantKind.nf4))
        found.append(("memory=qlora", nf4, request))
    for share in (2, 4, 8):
        length = work.max_completion // share
        if length >= 1:
            shorter = replace(work, max_completion=length)
            found.append((f"task.max_completion_length={length}", shorter, request))
    if work.lora.rank > 8 and not work.trains_all:
        small = replace(work, lora=replace(work.lora, rank=8))
        found.append(("model.lora.rank=8", small, request))
    return found


def _sharded(work: Work, request: Request) -> tuple[str, Work, Request]:
    """Return the change that leaves each rank a part of the layers; an engine is then shared."""
    parts = replace(work, is_sharded=True)
    if work.sampler not in ENGINES:
        return "memory.weights=sharded", parts, request
    keys = f"memory.weights=sharded generator.tensor_parallel={work.ranks}"
    return keys, replace(parts, sampler=Sampler.vllm_separate, engine_parts=work.ranks), request


def whole_fits(work: Work, request: Request, *, budget: int) -> bool:
    """Return whether a run whose layers are shared out would fit with all of them on each rank."""
    return least_plan(replace(work, is_sharded=False), request, budget=budget).fits
