"""vLLM 0.31 and 0.32: two new queues of requests, and a sampler that bounds lengths."""

from __future__ import annotations

from typing import Any

from rlkit.generation.vllm.compat import v0_24, v0_29
from rlkit.generation.vllm.compat.line import VLLMLine

SAMPLE = (
    "v1/worker/gpu/sample/sampler.py Sampler.sample(logits, expanded_idx_mapping, idx_mapping, "
    "idx_mapping_np, pos, input_ids, expanded_local_pos, seq_lens_upper_bound_np, return_logprobs)"
)
QUEUES = "v1/core/sched/scheduler.py Scheduler: kv_holding_waiting deferred_waiting"


def waits(scheduler: Any) -> bool:
    """Tell whether a request waits, with blocks of the cache or without, or is deferred."""
    return bool(scheduler.waiting or scheduler.kv_holding_waiting or scheduler.deferred_waiting)


def sample_options(batch: Any) -> dict[str, Any]:
    """Give each row's index, and the most tokens that it can hold by now."""
    return {
        "idx_mapping": batch.idx_mapping,
        "seq_lens_upper_bound_np": batch.seq_lens_cpu_upper_bound.numpy(),
    }


LINE = VLLMLine(
    name="0.31 and 0.32",
    names="\n".join((v0_24.COMMON, v0_29.GUMBEL, SAMPLE, v0_24.CUTS_BY_ROW, QUEUES)),
    waits=waits,
    gumbel_options=dict(v0_29.GUMBEL_OPTIONS),
    sample_options=sample_options,
    cuts=v0_24.cuts,
)
