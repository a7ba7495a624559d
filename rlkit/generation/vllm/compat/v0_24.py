"""vLLM 0.24 to 0.27. Measured with 0.24.0 on CUDA; the source of 0.25 to 0.27 was read."""

from __future__ import annotations

from typing import Any

from rlkit.generation.vllm.compat.line import VLLMLine

# `combine_sampled_and_draft_tokens`, `postprocess_sampled`, `dispatch` and the model state are
# called alike in all lines, with arguments by position.
COMMON = """
v1/worker/gpu/input_batch.py combine_sampled_and_draft_tokens(input_ids, idx_mapping,
    last_sampled_tokens, query_start_loc, seq_lens, prefill_len, draft_tokens, cu_num_logits,
    num_logits)
v1/worker/gpu/model_runner.py GPUModelRunner.postprocess_sampled(idx_mapping, sampled_tokens,
    num_sampled, num_rejected, query_start_loc)
v1/worker/gpu/cudagraph_utils.py CudaGraphManager.dispatch(num_reqs, num_tokens,
    uniform_token_count, num_active_loras)
v1/worker/gpu/model_states/default.py DefaultModelState.prepare_attn(input_batch,
    cudagraph_mode, block_tables, slot_mappings, attn_groups, kv_cache_config)
"""
GUMBEL = (
    "v1/worker/gpu/sample/gumbel.py gumbel_sample(logits, expanded_idx_mapping, temperature, seed, "
    "pos, apply_temperature, use_fp64)"
)
_SAMPLE = (
    "v1/worker/gpu/sample/sampler.py Sampler.sample(logits, expanded_idx_mapping, idx_mapping_np, "
    "pos, input_ids, expanded_local_pos, return_logprobs)"
)
CUTS_BY_ROW = (
    "v1/worker/gpu/sample/states.py SamplingStates.get_top_k_top_p"
    "(expanded_idx_mapping, idx_mapping_np)"
)
SKIPPED = "v1/core/sched/scheduler.py Scheduler: skipped_waiting"


def waits(scheduler: Any) -> bool:
    """Tell whether a request waits, or was skipped by the last scan of the queue."""
    return bool(scheduler.waiting or scheduler.skipped_waiting)


def cuts(states: Any, batch: Any, _words: int) -> Any:
    """Ask for top-k and top-p of the rows of `batch`."""
    return states.get_top_k_top_p(batch.expanded_idx_mapping, batch.idx_mapping_np)


def _no_options(_batch: Any) -> dict[str, Any]:
    return {}


LINE = VLLMLine(
    name="0.24 to 0.27",
    names="\n".join((COMMON, GUMBEL, _SAMPLE, CUTS_BY_ROW, SKIPPED)),
    waits=waits,
    gumbel_options={},
    sample_options=_no_options,
    cuts=cuts,
)
