"""This module fits a run into its device: the largest micro-batch and cache, or a line why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from rlkit.generation.demand import Sampler
from rlkit.kernels.workspace import WORKSPACE_BYTES
from rlkit.models.config import Checkpointing, QuantConfig, QuantKind, Switch, TuningKind
from rlkit.plan.parts import (
    ENGINES,
    GB,
    Choice,
    Part,
    Request,
    kv_bytes,
    parts_of,
    sampling_bytes,
)
from rlkit.plan.work import Work
from rlkit.training.optim import OptimKind

_WORKSPACES = (WORKSPACE_BYTES, 2**28, 2**26)
_ENGINE_TOKENS = (8192, 2048, 1024)
"""Tokens of one engine step, which bound its activations: the more, the faster prompts are read."""
_BUSY_TOKENS = 4096
"""Tokens of a micro-batch that keep a device busy. On an H200 and a model of 1.5B, forward and
backward take 180 ms with all activations kept. With layers recomputed they take 280 ms
(docs/memory/activations.md).
"""
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
    """Return the first plan that fits, most generous first.

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
    for choice in _choices(work, request):
        if sampling_bytes(work, request, choice) > budget - _margin(budget):
            continue
        plan = _plan(work, request, choice, budget)
        if plan.fits:
            return plan
    return least


def least_plan(work: Work, request: Request, *, budget: int) -> Plan:
    """Return the plan that takes least: the smallest micro-batch, one completion at once."""
    return _plan(work, request, list(_choices(work, request))[-1], budget)


def _margin(budget: int) -> int:
    return int(min(_MARGIN * budget, _MOST_MARGIN))


def _choices(work: Work, request: Request) -> Iterator[Choice]:
    modes = [request.checkpointing]
    if request.checkpointing is Checkpointing.auto:
        modes = [Checkpointing.off, Checkpointing.on, Checkpointing.offload]
    if not work.on_cuda:
        modes = [m for m in modes if m is not Checkpointing.offload] or [Checkpointing.on]
    at_once = _halves(min(work.num_rows, work.max_at_once), 1)
    splits = [
        (mode, size)
        for mode in modes
        for size in _token_budgets(work, request)
        if len(modes) == 1 or mode is not Checkpointing.off or _is_busy(work, request, size)
    ]
    for n, engine, (mode, size), workspace in product(
        at_once, _engine_choices(work, request), splits, _WORKSPACES
    ):
        yield Choice(size, mode, workspace, n, *engine)


def _is_busy(work: Work, request: Request, num_tokens: int) -> bool:
    """Return whether `num_tokens` keep the device busy.

    Below, a larger micro-batch beats kept layers.
    """
    return not work.on_cuda or num_tokens >= min(_BUSY_TOKENS, _token_budgets(work, request)[0])


def _engine_choices(work: Work, request: Request) -> list[tuple[int, bool]]:
    """Return tokens of a step and whether by CUDA graphs, the fastest first."""
    if work.sampler not in ENGINES:
        return [(0, False)]
    everything = work.num_rows * work.row_tokens
    usual = _ENGINE_TOKENS if work.on_cuda else _ENGINE_TOKENS[1:2]
    sizes = [request.engine_tokens] if request.engine_tokens else list(usual)
    sizes = [n for n in sizes if n < everything] or sizes[-1:]
    graphs = {Switch.on: [True], Switch.off: [False], Switch.auto: [True, False]}[request.graphs]
    if not work.on_cuda:
        graphs = [False]
    # Reading prompts in smaller pieces costs less than decoding without graphs.
    return [(n, by_graphs) for by_graphs in graphs for n in sizes]


def _token_budgets(work: Work, request: Request) -> list[int]:
    everything = work.num_rows * work.row_tokens
    if request.tokens_per_microbatch == 0:
        return [everything]
    most = min(max(request.tokens_per_microbatch, work.unit_tokens), everything)
    return _halves(most, min(work.unit_tokens, most))


def _halves(most: int, least: int) -> list[int]:
    """Return most, most / 2, ... down to `least`, which comes last."""
    values = [most]
    while values[-1] // 2 > least:
        values.append(values[-1] // 2)
    return values if values[-1] == least else [*values, least]


def _plan(work: Work, request: Request, choice: Choice, budget: int) -> Plan:
    return Plan(
        parts=parts_of(work, request, choice),
        choice=choice,
        kv_cache_bytes=kv_bytes(work, request, choice.at_once) if work.sampler in ENGINES else 0,
        budget=budget,
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
        if work.sampler is not Sampler.vllm:
            shared = replace(work, sampler=Sampler.vllm)
            found.append(("generator.weights=shared", shared, request))
    if work.optim is OptimKind.adamw:
        found.append(("optim=adamw8bit", replace(work, optim=OptimKind.adamw8bit), request))
    if work.trains_all:
        adapter = replace(work, tuning=TuningKind.lora)
        found.append(("model.tuning=lora", adapter, request))
    if work.quant.kind is QuantKind.none and not work.trains_all:
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
