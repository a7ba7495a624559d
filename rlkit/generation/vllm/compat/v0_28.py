"""vLLM 0.28: its sampler takes `idx_mapping`, as later ones do. The source of 0.28.0 was read."""

from __future__ import annotations

from typing import Any

from rlkit.generation.vllm.compat import v0_24
from rlkit.generation.vllm.compat.line import VLLMLine

SAMPLE = (
    "v1/worker/gpu/sample/sampler.py Sampler.sample(logits, expanded_idx_mapping, idx_mapping, "
    "idx_mapping_np, pos, input_ids, expanded_local_pos, return_logprobs)"
)


def sample_options(batch: Any) -> dict[str, Any]:
    """Give the sampler the rows' places in the states on the card too."""
    return {"idx_mapping": batch.idx_mapping}


LINE = VLLMLine(
    name="0.28",
    names="\n".join((v0_24.COMMON, v0_24.GUMBEL, SAMPLE, v0_24.CUTS_BY_ROW, v0_24.SKIPPED)),
    waits=v0_24.waits,
    gumbel_options={},
    sample_options=sample_options,
    cuts=v0_24.cuts,
)
