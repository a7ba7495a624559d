"""Fits a run into what its device has: the largest micro-batch and cache, or one line why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from rlkit.kernels._head import WORKSPACE_BYTES
from rlkit.models.config import Checkpointing, QuantConfig, QuantKind
from rlkit.optim import OptimKind
from rlkit.plan.sizes import moment_bytes
from rlkit.plan.work import Sampler, Work

GB = 10**9
CONTEXT_BYTES = 550_000_000
"""CUDA context, cuBLAS workspaces and loaded kernels, as measured on an H100 (docs/memory)."""
ENGINE_BYTES = 3 * 2**29
"""vLLM's CUDA graphs, workspaces and activations (rlkit/generation/vllm_memory.py)."""
_WORKSPACES = (WORKSPACE_BYTES, 2**28, 2**26)
_KV_BLOCK = 16
_CPU_KV_BLOCK = 32
_ENGINES = (Sampler.vllm, Sampler.vllm_separate, Sampler.vllm_sleep)
_LOGITS_COPIES = 4
"""Float32 arrays of rows x vocabulary that sampling holds at once."""


_MARGIN = 0.03
"""Share of the budget left free: allocators round up and leave holes."""


class Part(NamedTuple):
    """One line of the plan."""

    name: str
    sampling: int
    """Bytes while completions are sampled."""
    training: int
    """Bytes while the policy is updated."""


class Choice(NamedTuple):
    """What the plan decides."""

    tokens_per_microbatch: int
    checkpointing: Checkpointing
    workspace_bytes: int
    at_once: int
    """Completions sampled at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will take, and how it was made to fit."""

    parts: tuple[Part, ...]
    choice: Choice
    kv_cache_bytes: int
    """Of an engine in this process; 0 = none."""
    budget: int
    """What the device has for the run."""

    @property
    def sampling(self) -> int:
        """Peak bytes while completions are sampled."""
        return sum(part.sampling for part in self.parts)

    @property
    def training(self) -> int:
        """Peak bytes of the update."""
        return sum(part.training for part in self.parts)

    @property
    def peak(self) -> int:
        """Most bytes at any time."""
        return max(self.sampling, self.training)

    @property
    def fits(self) -> bool:
        """Whether the device has enough."""
        return self.peak <= (1.0 - _MARGIN) * self.budget


class DoesNotFit(ValueError):
    """The run needs more memory than there is; the message is one line with the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the configuration asks the plan for."""

    tokens_per_microbatch: int
    """Upper bound; 0 = the whole batch at once."""
    checkpointing: Checkpointing
    """`auto` leaves it to the plan."""
    kv_cache_bytes: int
    """0 leaves it to the plan."""
    prefers_recomputation: bool
    """Whether `auto` begins with checkpointing, as for large models."""


def make_plan(work: Work, request: Request, *, budget: int, before: Choice | None = None) -> Plan:
    """The first plan that fits, most generous first; raises DoesNotFit.

    `before`: what a run chose that now goes on; it comes first, as another split rounds otherwise.
    """
    if before is not None:
        again = _plan(work, request, before, budget)
        if again.fits:
            return again
    least = least_plan(work, request, budget=budget)
    if not least.fits:
        raise DoesNotFit(_refusal(work, request, least))
    for choice in _choices(work, request):
        if _sampling_bytes(work, request, choice) > (1.0 - _MARGIN) * budget:
            continue
        plan = _plan(work, request, choice, budget)
        if plan.fits:
            return plan
    return least


def least_plan(work: Work, request: Request, *, budget: int) -> Plan:
    """The plan that takes least: the smallest micro-batch, one completion at once."""
    return _plan(work, request, list(_choices(work, request))[-1], budget)


def _choices(work: Work, request: Request) -> Iterator[Choice]:
    modes = [request.checkpointing]
    if request.checkpointing is Checkpointing.auto:
        modes = [Checkpointing.on, Checkpointing.offload]
        if not request.prefers_recomputation:
            modes.insert(0, Checkpointing.off)
    if not work.on_cuda:
        modes = [m for m in modes if m is not Checkpointing.offload] or [Checkpointing.on]
    for at_once in _halves(min(work.num_rows, work.max_at_once), 1):
        for mode in modes:
            for tokens in _token_budgets(work, request):
                for workspace in _WORKSPACES:
                    yield Choice(tokens, mode, workspace, at_once)


def _token_budgets(work: Work, request: Request) -> list[int]:
    everything = work.num_rows * work.row_tokens
    if request.tokens_per_microbatch == 0:
        return [everything]
    most = min(max(request.tokens_per_microbatch, work.unit_tokens), everything)
    return _halves(most, min(work.unit_tokens, most))


def _halves(most: int, least: int) -> list[int]:
    """most, most / 2, ... down to `least`, which comes last."""
    values = [most]
    while values[-1] // 2 > least:
        values.append(values[-1] // 2)
    return values if values[-1] == least else [*values, least]


def _plan(work: Work, request: Request, choice: Choice, budget: int) -> Plan:
    kv = _kv_bytes(work, request, choice.at_once)
    parts = (*_static_parts(work), *_sampling_parts(work, kv, choice), _update(work, choice))
    return Plan(
        parts=tuple(part for part in parts if part.sampling or part.training),
        choice=choice,
        kv_cache_bytes=kv if work.sampler in _ENGINES else 0,
        budget=budget,
    )


def _sampling_bytes(work: Work, request: Request, choice: Choice) -> int:
    kv = _kv_bytes(work, request, choice.at_once)
    return sum(p.sampling for p in (*_static_parts(work), *_sampling_parts(work, kv, choice)))


def _static_parts(work: Work) -> list[Part]:
    context = CONTEXT_BYTES if work.on_cuda else 0
    base, trained = work.weight_bytes, work.num_trained
    moments = moment_bytes(trained, work.optim)
    return [
        Part("CUDA context and kernels", context, context),
        Part(f"base model ({_dtype(work)})", base, base),
        Part(f"adapters ({trained / 1e6:.1f} M parameters, fp32)", 4 * trained, 4 * trained),
        Part(f"optimiser ({work.optim.value})", moments, moments),
        Part("gradients (fp32)", 0, 4 * trained),
    ]


def _sampling_parts(work: Work, kv: int, choice: Choice) -> list[Part]:
    if work.sampler is Sampler.elsewhere:
        return []
    name = f"keys and values ({choice.at_once} x {work.row_tokens} tokens)"
    if work.sampler is Sampler.hf:
        compute = _sampling_activations(work, choice.at_once)
        return [Part(name, kv, 0), Part("sampling (transformers)", compute, 0)]
    slots = 2 * work.num_trained
    parts = [
        Part(name, kv, 0 if work.releases_kv else kv),
        Part("vLLM: graphs, activations, adapter slot", ENGINE_BYTES + slots, ENGINE_BYTES + slots),
    ]
    if work.sampler is not Sampler.vllm:
        awake = 0 if work.sampler is Sampler.vllm_sleep else work.weight_bytes
        parts.append(Part("vLLM: weights of its own", work.weight_bytes, awake))
    return parts


def _sampling_activations(work: Work, at_once: int) -> int:
    """Prefill of the prompts in the cache at once, then logits of each row."""
    prompts = -(-at_once // work.group_size)
    prefill = work.prefill_bytes(prompts * work.max_prompt)
    factors = work.num_trained * work.dtype.itemsize  # of the adapter, in the compute dtype
    return max(prefill, factors + _LOGITS_COPIES * 4 * at_once * work.num_words)


def _update(work: Work, choice: Choice) -> Part:
    mode = {
        Checkpointing.off: "activations",
        Checkpointing.on: "activations, recomputed",
        Checkpointing.offload: "activations, recomputed, inputs in host memory",
    }[choice.checkpointing]
    tokens = choice.tokens_per_microbatch
    needed = work.activation_bytes(
        tokens, checkpointing=choice.checkpointing, workspace_bytes=choice.workspace_bytes
    )
    return Part(f"{mode} ({tokens} tokens) and log-probs", 0, needed)


def _kv_bytes(work: Work, request: Request, at_once: int) -> int:
    """Cache of `at_once` completions of full length, in whole blocks with two to spare."""
    if request.kv_cache_bytes and work.sampler in _ENGINES:
        return request.kv_cache_bytes
    block = _KV_BLOCK if work.on_cuda else _CPU_KV_BLOCK
    blocks = at_once * -(-work.row_tokens // block) + 2
    return blocks * block * work.kv_token_bytes


def _refusal(work: Work, request: Request, least: Plan) -> str:
    need, have = least.peak / (1.0 - _MARGIN) / GB, least.budget / GB
    text = f"memory must be at least {need:.2f} GB for this run, got {have:.2f} GB"
    for key, other, asked in _remedies(work, request):
        plan = least_plan(other, asked, budget=least.budget)
        if plan.fits:
            return f"{text}; {key} makes it fit ({plan.peak / GB:.2f} GB)"
    return f"{text}; no single option makes it fit: a smaller model or larger card would"


def _remedies(work: Work, request: Request) -> Sequence[tuple[str, Work, Request]]:
    """Single changes, the one that costs least first."""
    found: list[tuple[str, Work, Request]] = []
    if request.checkpointing is not Checkpointing.auto:
        free = replace(request, checkpointing=Checkpointing.auto)
        found.append(("model.gradient_checkpointing=auto", work, free))
    if request.tokens_per_microbatch == 0 and work.unit_tokens < work.num_rows * work.row_tokens:
        split = replace(request, tokens_per_microbatch=work.unit_tokens)
        found.append((f"memory.tokens_per_microbatch={work.unit_tokens}", work, split))
    if request.kv_cache_bytes:
        found.append(("generator.kv_cache_bytes=0", work, replace(request, kv_cache_bytes=0)))
    if work.sampler in _ENGINES:
        if not work.releases_kv and work.on_cuda:
            released = replace(work, releases_kv=True)
            found.append(("generator.release_kv_cache=true", released, request))
        if work.sampler is not Sampler.vllm:
            shared = replace(work, sampler=Sampler.vllm)
            found.append(("generator.weights=shared", shared, request))
    if work.optim is OptimKind.adamw:
        found.append(("optim=adamw8bit", replace(work, optim=OptimKind.adamw8bit), request))
    if work.quant.kind is QuantKind.none:
        nf4 = replace(work, quant=QuantConfig(kind=QuantKind.nf4))
        if work.sampler is Sampler.elsewhere or work.sampler is Sampler.hf:
            found.append(("memory=qlora", nf4, request))
        else:
            nf4 = replace(nf4, sampler=Sampler.hf)
            found.append(("memory=qlora generator=hf", nf4, request))
    for share in (2, 4, 8):
        length = work.max_completion // share
        if length >= 1:
            shorter = replace(work, max_completion=length)
            found.append((f"task.max_completion_length={length}", shorter, request))
    if work.lora.rank > 8:
        small = replace(work, lora=replace(work.lora, rank=8))
        found.append(("model.lora.rank=8", small, request))
    return found


def _dtype(work: Work) -> str:
    name = {2: "16 bits", 4: "fp32"}.get(work.dtype.itemsize, str(work.dtype))
    return f"NF4, rest {name}" if work.quant.kind is QuantKind.nf4 else name
