"""This module writes the plan as text."""

from __future__ import annotations

from collections.abc import Iterator

from rlkit.plan.choose import Plan
from rlkit.plan.parts import GB


def lines(plan: Plan, *, where: str) -> Iterator[str]:
    """Yield a table of the parts in GB (10^9 bytes), then what the plan decided and why."""
    width = max(len(part.name) for part in plan.parts)
    yield f"{'memory (GB)':<{width}}  sampling  training"
    for part in plan.parts:
        yield f"{part.name:<{width}}  {_gb(part.sampling)}  {_gb(part.training)}"
    yield f"{'in all':<{width}}  {_gb(plan.sampling)}  {_gb(plan.training)}"
    yield f"{where}: {plan.budget / GB:.2f} GB, {(plan.budget - plan.peak) / GB:.2f} GB to spare"
    yield decisions(plan)
    if plan.why:
        yield plan.why


def decisions(plan: Plan) -> str:
    """Return one line on what the plan chose."""
    choice = plan.choice
    kv = f", {plan.kv_cache_bytes / GB:.2f} GB of keys and values" if plan.kv_cache_bytes else ""
    return (
        f"memory plan: {choice.tokens_per_microbatch} tokens a micro-batch, gradient checkpointing "
        f"{choice.checkpointing.value}, {choice.at_once} completions at once{kv}"
    )


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / GB:8.2f}" if num_bytes else f"{'-':>8}"
