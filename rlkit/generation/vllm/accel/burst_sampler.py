"""Sample in a burst with vLLM's own sampler, and get the logps of what it took.

It uses private attributes of vLLM, as does `rlkit.generation.vllm.accel.burst`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from rlkit.generation.vllm.compat.line import VLLMLine


class BurstSampler:
    """It draws one token a row as `vllm.v1.worker.gpu.sample.Sampler` does, with the same bits."""

    def __init__(self, runner: Any, line: VLLMLine) -> None:
        from vllm.v1.worker.gpu.sample import gumbel

        # The import is not at the top: Triton may be missing where vLLM decodes step by step.
        from rlkit.generation.vllm.accel.burst_kernel import token_logps

        self._runner, self._gumbel, self._logps = runner, gumbel, token_logps
        self._line = line

    def is_plain(self, batch: Any) -> bool:
        """Tell whether logits are sampled as they are: at temperature 1, with nothing cut off."""
        states, rows = self._runner.sampler.sampling_states, batch.idx_mapping_np
        cuts = self._line.cuts(states, batch, states.vocab_size)
        return (
            bool(np.all(states.temperature.np[rows] == 1.0))
            and bool(np.all(states.min_p.np[rows] == 0.0))
            and all(cut is None for cut in cuts)
        )

    def __call__(self, hidden: Tensor, batch: Any, *, plain: bool) -> tuple[Tensor, Tensor]:
        """Return token ids and their logps, (rows,), from the model's output.

        With guesses a row of `batch` has several tokens, and so several rows of the results.
        `plain` reads the logits in the model's dtype, without vLLM's float32 copy of them: the
        values are the same. Options beyond those that `is_plain` looks at must not be in use.
        """
        runner, count = self._runner, len(batch.expanded_idx_mapping)
        logits = runner.model.compute_logits(hidden[:count])
        if plain:
            # vLLM's sampler would copy the logits to float32 before it draws by this kernel.
            states = runner.sampler.sampling_states
            sampled = self._gumbel.gumbel_sample(
                logits,
                batch.expanded_idx_mapping,
                states.temperature.gpu,
                states.seeds.gpu,
                batch.positions[:count],
                apply_temperature=False,
                use_fp64=runner.sampler.use_fp64_gumbel,
                **self._line.gumbel_options,
            )
            return sampled, self._logps(logits, sampled)
        sampled, processed = runner.sampler.sample(
            logits=logits,
            expanded_idx_mapping=batch.expanded_idx_mapping,
            idx_mapping_np=batch.idx_mapping_np,
            pos=batch.positions[:count],
            input_ids=batch.input_ids[:count],
            expanded_local_pos=batch.expanded_local_pos,
            return_logprobs=True,
            **self._line.sample_options(batch),
        )
        return sampled, self._logps(processed, sampled)
