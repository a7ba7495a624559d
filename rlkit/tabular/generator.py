"""This module samples from the table, with the seeds and the drawing of every other generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlkit.generation.sampling import uniforms
from rlkit.oracle.tree import END
from rlkit.tabular.policy import LOGITS
from rlkit.types import FinishReason, Prompt, Rollout, SamplingConfig


class TabularGenerator:
    """Rows of all prompts advance together, one word a round; `noise` (P, S, V) is added first."""

    def __init__(self, logits: Tensor, noise: Tensor) -> None:
        self._logits = logits.detach()
        self._noise = noise
        self._version = 0

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingConfig,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Rollout]]:
        """Sample from the table; row i of a prompt depends on its seed alone.

        Args:
            prompts: Prompts whose last id is the number of their table.
            num_samples: Completions of each prompt, >= 1.
            sampling: The temperature and the limit of the length.
            seeds: A seed for each completion of each prompt.

        Returns:
            `num_samples` completions of each prompt.
        """
        _, num_states, num_words = self._logits.shape
        logps = ((self._logits + self._noise) / sampling.temperature).log_softmax(dim=-1)
        logps = logps.flatten(0, 1)
        cdf = logps.exp().cumsum(dim=-1)
        first = torch.tensor([p.ids[-1] * num_states for p in prompts])
        root = first.repeat_interleave(num_samples)
        state, ended = torch.zeros_like(root), torch.zeros_like(root, dtype=torch.bool)
        words, rows = [], []
        for uniform in _uniforms(seeds, rounds=sampling.max_completion_length):
            row = root + state
            # The word at which the cumulative distribution first exceeds the uniform number.
            word = (uniform[:, None] * cdf[row, -1:] >= cdf[row, :-1]).sum(dim=1)
            words.append(word)
            rows.append(row)
            # A completion that has ended goes on at the root: what is drawn there is cut off.
            ended = ended | (word == END)
            state = (state * (num_words - 1) + word).masked_fill(ended, 0)
        taken, visited = torch.stack(words, dim=1), torch.stack(rows, dim=1)
        ids, chances = taken.tolist(), logps[visited, taken].tolist()
        rollouts = [
            self._rollout(prompts[i // num_samples], i % num_samples, ids[i], chances[i])
            for i in range(len(ids))
        ]
        return [rollouts[i : i + num_samples] for i in range(0, len(rollouts), num_samples)]

    def load_adapter(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Sample from these logits from now on; no copy."""
        self._logits = tensors[LOGITS].detach()
        self._version = version

    def close(self) -> None:
        """Do nothing, for nothing is held."""

    def _rollout(
        self, prompt: Prompt, index: int, ids: Sequence[int], logps: Sequence[float]
    ) -> Rollout:
        stopped = END in ids
        length = ids.index(END) + 1 if stopped else len(ids)
        return Rollout(
            prompt=prompt,
            sample_index=index,
            completion_ids=tuple(ids[:length]),
            sampling_logps=tuple(logps[:length]),
            finish_reason=FinishReason.stop if stopped else FinishReason.length,
            policy_version=self._version,
        )


def _uniforms(seeds: Sequence[Sequence[int]], *, rounds: int) -> Tensor:
    """Return (rounds, rows) numbers in [0, 1): those that every generator draws with."""
    flat = torch.tensor([seed for row in seeds for seed in row])
    return torch.stack([uniforms(flat, t) for t in range(rounds)])
