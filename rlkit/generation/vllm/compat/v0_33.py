"""vLLM 0.33: top-k and top-p are asked for with the number of words. The source was read."""

from __future__ import annotations

from typing import Any

from rlkit.generation.vllm.compat import v0_24, v0_29, v0_31
from rlkit.generation.vllm.compat.line import VLLMLine

_CUTS = (
    "v1/worker/gpu/sample/states.py SamplingStates.get_top_k_top_p"
    "(expanded_idx_mapping, idx_mapping_np, vocab_size)"
)


def _cuts(states: Any, batch: Any, words: int) -> Any:
    top_k, top_p, _has_top_p_alone = states.get_top_k_top_p(
        batch.expanded_idx_mapping, batch.idx_mapping_np, words
    )
    return top_k, top_p


LINE = VLLMLine(
    name="0.33",
    names="\n".join((v0_24.COMMON, v0_29.GUMBEL, v0_31.SAMPLE, _CUTS, v0_31.QUEUES)),
    waits=v0_31.waits,
    gumbel_options=dict(v0_29.GUMBEL_OPTIONS),
    sample_options=v0_31.sample_options,
    cuts=_cuts,
)
