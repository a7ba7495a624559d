"""This module has the parts of a run's memory on its device, under one choice of the plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from rlkit.generation.demand import Sampler
from rlkit.models.config import Checkpointing, QuantKind, Switch
from rlkit.plan.work import Work

GB = 10**9
# They were measured on an H100 80GB (docs/memory/plan.md): torch 2.11, CUDA 13.0, vLLM 0.24.0.
CONTEXT_BYTES = 650_000_000
"""The CUDA context."""
KERNEL_BYTES = 130_000_000
"""Kernels loaded and cuBLAS workspaces taken as a run goes on."""
LIBRARY_BYTES = 250_000_000
"""A CPU's process: modules that load as a run goes on, and what the allocator keeps."""
ENGINE_BYTES = 250_000_000
"""vLLM adds this: its kernels, cuBLAS workspaces on its stream, index buffers."""
GRAPH_BYTES = 80_000_000
GRAPH_BYTES_PER_LAYER = 100_000
"""CUDA graphs: at all, and for one decoder layer in one of them."""
_UPDATE_BYTES = 100_000_000
"""Workspaces of the backward pass, which runs in a thread of its own."""
_HOLES = 1.03
"""The allocator takes this for activations of one byte."""
_KV_BLOCK = 16
_CPU_KV_BLOCK = 32
_PROBE_TOKENS = 96
"""The self-test has this many, in two sequences."""
_PROBE_ROWS = 16
"""Those of them that are scored."""
_LOGITS_COPIES = 4
"""Float32 arrays of rows x vocabulary that sampling holds at once."""
_SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
ENGINES = (Sampler.vllm, Sampler.vllm_separate, Sampler.vllm_sleep)


class Part(NamedTuple):
    """This record is one line of the plan."""

    name: str
    sampling: int
    """Bytes while completions are sampled."""
    training: int
    """Bytes while the policy is updated."""


class Choice(NamedTuple):
    """The plan decides these."""

    tokens_per_microbatch: int
    checkpointing: Checkpointing
    workspace_bytes: int
    at_once: int
    """Completions sampled at once."""
    engine_tokens: int = 0
    """Most tokens of one step of an engine in this process; 0 = none."""
    graphs: bool = False
    """Whether that engine decodes by CUDA graphs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The configuration asks the plan for these."""

    tokens_per_microbatch: int | None
    """Upper bound; 0 = the whole batch at once, None leaves it to the plan."""
    checkpointing: Checkpointing
    """`auto` leaves it to the plan."""
    kv_cache_bytes: int
    """0 leaves it to the plan."""
    engine_tokens: int = 0
    """0 leaves it to the plan."""
    graphs: Switch = Switch.auto
    """`auto`: where they fit."""


def parts_of(work: Work, request: Request, choice: Choice) -> tuple[Part, ...]:
    """Everything the run holds at its peaks, zeros left out."""
    sampling = _sampling_parts(work, kv_bytes(work, request, choice.at_once), choice)
    parts = (*_static_parts(work), *sampling, _update(work, choice))
    if not work.on_cuda:
        parts = (*parts, _evaluation(work, choice, beside=sum(p.sampling for p in sampling)))
    return tuple(part for part in parts if part.sampling or part.training)


def sampling_bytes(work: Work, request: Request, choice: Choice) -> int:
    """Return the peak while sampling; the activations of the update cost more to find."""
    kv = kv_bytes(work, request, choice.at_once)
    return sum(p.sampling for p in (*_static_parts(work), *_sampling_parts(work, kv, choice)))


def update_bytes(work: Work, choice: Choice) -> int:
    """Return what the update takes for itself at its peak."""
    return _update(work, choice).training


def _static_parts(work: Work) -> list[Part]:
    context = (CONTEXT_BYTES + KERNEL_BYTES) if work.on_cuda else LIBRARY_BYTES
    name = "CUDA context and kernels" if work.on_cuda else "libraries"
    moments, gradients = work.moment_bytes, work.trained_bytes
    return [
        Part(name, context, context),
        *_weight_parts(work),
        Part("reward model", sum(work.scorers), work.scorers.kept),
        Part(f"optimiser ({work.optim.value})", moments, moments),
        Part(f"gradients ({_SHORT[work.trained_dtype]})", 0, gradients),
    ]


def _weight_parts(work: Work) -> list[Part]:
    base, trained, dtype = work.held_bytes, work.num_trained, _dtype(work)
    wide = work.trained_bytes
    if not work.trains_all:
        stored = _SHORT[work.trained_dtype]
        adapters = Part(f"adapters ({trained / 1e6:.1f} M parameters, {stored})", wide, wide)
        sharded = f", layers over {work.ranks} ranks" if work.is_sharded else ""
        parts = [Part(f"base model ({dtype}{sharded})", base, base), adapters]
        if kept := work.first_adapter_bytes:
            parts.append(Part(f"reference adapter ({stored})", kept, kept))
        return parts
    reference = base if work.holds_reference else 0
    return [
        Part(f"weights ({trained / 1e6:.1f} M parameters, {dtype})", base, base),
        Part("master weights (fp32)", work.master_bytes, work.master_bytes),
        Part(f"reference policy ({dtype})", reference, reference),
    ]


def _sampling_parts(work: Work, kv: int, choice: Choice) -> list[Part]:
    if work.sampler is Sampler.elsewhere:
        return []
    if work.sampler is Sampler.hf:
        name = _kv_name(choice, work.prompt_tokens + work.max_completion)
        compute = _sampling_activations(work, choice.at_once)
        return [Part(name, kv, 0), Part("sampling (transformers)", compute, 0)]
    name = _kv_name(choice, work.row_tokens)
    slots = work.dtype.itemsize * work.num_adapter
    own = ENGINE_BYTES * work.on_cuda + slots
    graphs = _graph_bytes(work, choice)
    steps = _engine_step_bytes(work, choice)
    parts = [
        Part(name, kv, 0 if work.releases_kv else kv),
        Part(f"vLLM: kernels, buffers{', adapter slot' if slots else ''}", own, own),
        Part("vLLM: CUDA graphs", graphs, graphs),
        Part(f"vLLM: activations ({choice.engine_tokens} tokens)", steps, 0),
    ]
    if work.sampler is not Sampler.vllm:
        weights = work.engine_weight_bytes
        awake = 0 if work.sampler is Sampler.vllm_sleep else weights
        parts.append(Part("vLLM: weights of its own", weights, awake))
    return parts


def _kv_name(choice: Choice, row_tokens: int) -> str:
    return f"keys and values ({choice.at_once} x {row_tokens} tokens)"


def _graph_bytes(work: Work, choice: Choice) -> int:
    """Return the bytes of a graph for each of 1, 2, 4, 8, 16, 24 and so on rows, in one pool."""
    if not choice.graphs:
        return 0
    sizes = 3 + -(-choice.at_once // 8)
    layers = int(work.hf_config.get_text_config().num_hidden_layers)
    kinds = 1 if work.trains_all else 2
    return GRAPH_BYTES + kinds * sizes * layers * GRAPH_BYTES_PER_LAYER


def _engine_step_bytes(work: Work, choice: Choice) -> int:
    """Return the peak of a step that reads prompts, or of the trainer's part of the self-test."""
    tokens = min(choice.engine_tokens, work.rows_together * work.row_tokens)
    row_of_logits = _LOGITS_COPIES * 4 * work.num_words
    step = work.prefill_bytes(tokens) + choice.at_once * row_of_logits
    factors = work.num_adapter * work.dtype.itemsize  # of the adapter, in the compute dtype
    self_test = factors + work.prefill_bytes(_PROBE_TOKENS) + _PROBE_ROWS * row_of_logits
    return int((_HOLES if work.on_cuda else 1.0) * max(step, self_test))


def _sampling_activations(work: Work, at_once: int) -> int:
    """Prefill of the prompts in the cache at once, then logits of each row."""
    prompts = -(-at_once // work.group_size)
    prefill = work.prefill_bytes(prompts * work.prompt_tokens)
    factors = work.num_adapter * work.dtype.itemsize  # of the adapter, in the compute dtype
    return max(prefill, factors + _LOGITS_COPIES * 4 * at_once * work.num_words)


def _update(work: Work, choice: Choice) -> Part:
    mode = {
        Checkpointing.off: "activations",
        Checkpointing.on: "activations, recomputed",
        Checkpointing.offload: "activations, recomputed, inputs in host memory",
    }[choice.checkpointing]
    tokens = min(choice.tokens_per_microbatch, work.step_tokens)
    needed = work.activation_bytes(
        tokens, checkpointing=choice.checkpointing, workspace_bytes=choice.workspace_bytes
    )
    taken = int(_HOLES * needed) + _UPDATE_BYTES if work.on_cuda else needed
    return Part(f"{mode} ({tokens} tokens) and log-probs", 0, taken)


def _evaluation(work: Work, choice: Choice, *, beside: int) -> Part:
    """Return what scoring held-out completions takes beyond what sampling does.

    On a card the worst step that is tried before the first one has room for it.
    """
    needed = work.evaluation_bytes(
        choice.tokens_per_microbatch, workspace_bytes=choice.workspace_bytes
    )
    return Part("evaluation, beyond sampling", max(0, needed - beside), 0)


def kv_bytes(work: Work, request: Request, at_once: int) -> int:
    """Return the cache of `at_once` full-length completions, in whole blocks with two to spare."""
    if request.kv_cache_bytes and work.sampler in ENGINES:
        return request.kv_cache_bytes
    block = _KV_BLOCK if work.on_cuda else _CPU_KV_BLOCK
    row_tokens = work.row_tokens  # an engine must be ready for all that is allowed
    if work.sampler is Sampler.hf:
        row_tokens = work.prompt_tokens + work.max_completion
    blocks = at_once * -(-(row_tokens + work.spare_tokens) // block) + 2
    return blocks * block * work.kv_token_bytes


def _dtype(work: Work) -> str:
    name = {2: "16 bits", 4: "fp32"}.get(work.dtype.itemsize, str(work.dtype))
    kinds = {QuantKind.nf4: f"NF4, rest {name}", QuantKind.fp8: f"fp8, rest {name}"}
    return kinds.get(work.quant.kind, name)
