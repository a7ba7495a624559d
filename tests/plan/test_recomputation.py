"""When the plan lets decoder layers run twice: only where that is faster than smaller batches."""

from __future__ import annotations

from plan_works import step_work

from rlkit.models.config import Checkpointing
from rlkit.plan.choose import make_plan
from rlkit.plan.parts import GB, Choice, Request


def choice(budget: int, *, tokens: int | None, on_cuda: bool = True) -> Choice:
    """Of 8 x 8 completions of 128 + 512 tokens on the 1.5B shape."""
    request = Request(
        tokens_per_microbatch=tokens, checkpointing=Checkpointing.auto, kv_cache_bytes=0
    )
    work = step_work("qwen2.5-1.5b", 8, 8, 512, on_cuda=on_cuda)
    return make_plan(work, request, budget=budget).choice


def test_activations_are_kept_where_a_busy_micro_batch_fits() -> None:
    found = choice(80 * GB, tokens=8192)
    assert (found.checkpointing, found.tokens_per_microbatch) == (Checkpointing.off, 8192)
    # One group of 128 + 8 x 512 tokens: eight of them take .76 s, and two at once, run twice, .73.
    found = choice(18 * GB, tokens=None)
    assert (found.checkpointing, found.tokens_per_microbatch) == (Checkpointing.on, 33792)


def test_else_layers_run_twice_in_a_micro_batch_as_large_as_asked() -> None:
    found = choice(10 * GB, tokens=8192)
    assert (found.checkpointing, found.tokens_per_microbatch) == (Checkpointing.on, 8192)
