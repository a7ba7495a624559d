"""Sampling in a burst: vLLM's own sampler, and the logps of what it took.

Private attributes of vLLM, as in `rlkit.generation.vllm.burst`.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from torch import Tensor


class BurstSampler:
    """Draws one token a row as `vllm.v1.worker.gpu.sample.Sampler` does, with the same bits."""

    def __init__(self, runner: Any) -> None:
        from vllm.v1.worker.gpu.sample import gumbel

        from rlkit.generation.vllm.burst_kernel import token_logps

        self._runner, self._gumbel, self._logps = runner, gumbel, token_logps
        self._takes_mapping = "idx_mapping" in _parameters(runner.sampler.sample)
        # Of 0.30, which has samplers for drafts as well.
        drafts = "is_drafting" in _parameters(gumbel.gumbel_sample)
        self._options: dict[str, Any] = {"is_drafting": False} if drafts else {}

    def is_plain(self, batch: Any) -> bool:
        """Whether the logits are sampled as they are: temperature 1 and nothing cut off."""
        states, rows = self._runner.sampler.sampling_states, batch.idx_mapping_np
        cuts = states.get_top_k_top_p(batch.expanded_idx_mapping, rows)
        return (
            bool(np.all(states.temperature.np[rows] == 1.0))
            and bool(np.all(states.min_p.np[rows] == 0.0))
            and all(cut is None for cut in cuts)
        )

    def __call__(self, hidden: Tensor, batch: Any, *, plain: bool) -> tuple[Tensor, Tensor]:
        """Token ids and their logps, (rows,), from the model's output.

        `plain` reads the logits in the model's dtype, without vLLM's float32 copy of them: the
        values are the same. Options beyond those that `is_plain` looks at must not be in use.
        """
        runner, count = self._runner, batch.num_reqs
        logits = runner.model.compute_logits(hidden[:count])
        if plain:
            states = runner.sampler.sampling_states
            sampled = self._gumbel.gumbel_sample(
                logits,
                batch.expanded_idx_mapping,
                states.temperature.gpu,
                states.seeds.gpu,
                batch.positions[:count],
                apply_temperature=False,
                use_fp64=runner.sampler.use_fp64_gumbel,
                **self._options,
            )
            return sampled, self._logps(logits, sampled)
        mapping = {"idx_mapping": batch.idx_mapping} if self._takes_mapping else {}
        sampled, processed = runner.sampler.sample(
            logits=logits,
            expanded_idx_mapping=batch.expanded_idx_mapping,
            idx_mapping_np=batch.idx_mapping_np,
            pos=batch.positions[:count],
            input_ids=batch.input_ids[:count],
            expanded_local_pos=batch.expanded_local_pos,
            return_logprobs=True,
            **mapping,
        )
        return sampled, self._logps(processed, sampled)


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)
