"""Cut the completions of one call into batches, and lay out the prompts of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rlkit.types import FinishReason, Prompt, Rollout


@dataclass(slots=True, kw_only=True)
class SamplingRow:
    """One completion while it is being sampled."""

    prompt: Prompt
    prompt_number: int
    """Position of the prompt in the call."""
    sample_index: int
    seed: int
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    drafted: int = 0
    accepted: int = 0

    def most_tokens(self, longest: int) -> int:
        """Return the limit of the completion in a call that allows `longest` tokens."""
        return self.prompt.most_tokens(longest)

    def rollout(self, policy_version: int) -> Rollout:
        """Return the finished completion."""
        assert self.finish_reason is not None
        return Rollout(
            prompt=self.prompt,
            sample_index=self.sample_index,
            completion_ids=tuple(self.ids),
            sampling_logps=tuple(self.logps),
            finish_reason=self.finish_reason,
            policy_version=policy_version,
            drafted=self.drafted,
            accepted=self.accepted,
        )


def make_rows(
    prompts: Sequence[Prompt], *, num_samples: int, seeds: Sequence[Sequence[int]]
) -> list[SamplingRow]:
    """Return one row per completion: by prompt, and prompts of similar length close by."""
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n].ids))
    return [
        SamplingRow(prompt=prompts[n], prompt_number=n, sample_index=i, seed=seeds[n][i])
        for n in order
        for i in range(num_samples)
    ]


def split_rows(
    rows: Sequence[SamplingRow], *, max_completion_length: int, max_rows: int, max_tokens: int
) -> list[Sequence[SamplingRow]]:
    """Return consecutive batches of nearly equal size, within both limits but never empty.

    A batch of n rows with longest prompt P counts n * (P + max_completion_length) tokens.

    Args:
        rows: At least one row.
        max_completion_length: The most tokens that a row may still get, >= 1.
        max_rows: The most rows of a batch, >= 1.
        max_tokens: The most tokens of a batch, >= 1; a single row may have more.

    Returns:
        Slices of `rows`, in their order.
    """
    longest = max(len(row.prompt.ids) for row in rows) + max_completion_length
    capacity = max(1, min(max_rows, max_tokens // longest))
    num_batches = -(-len(rows) // capacity)
    size = -(-len(rows) // num_batches)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def common_prefix_length(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return how many leading tokens all prompts share, short of the last token of any of them."""
    first, last = min(prompts), max(prompts)
    limit = min(len(ids) for ids in prompts) - 1
    return next((n for n in range(limit) if first[n] != last[n]), limit)


class Prefill(NamedTuple):
    """The forward pass over what is left of N prompts after a shared prefix of W tokens.

    The sequences are left-padded to a common end, prefix included: column c of row i holds token
    c - pads[i] of prompt i. The last R = longest - W columns are computed, and the others are taken
    from the prefix's cache. A shorter prompt recomputes a few prefix tokens in place of padding.
    """

    input_ids: Int[Tensor, "N R"]
    pads: Int[Tensor, " N"]
    prefix_columns: Int[Tensor, "N W"]
    """The prefix token in column w of row i; any one under padding."""
    mask: Bool[Tensor, "N L"] | None
    """False on the padding among the W + R columns; None without padding."""
    num_columns: int


def plan_prefill(
    prompts: Sequence[tuple[int, ...]], *, prefix_length: int, device: torch.device
) -> Prefill:
    """Lay out `prompts`, which share their first `prefix_length` tokens."""
    longest = max(len(ids) for ids in prompts)
    padded = [(0,) * (longest - len(ids)) + ids for ids in prompts]
    pads = torch.tensor([longest - len(ids) for ids in prompts], device=device)
    columns = torch.arange(longest, device=device)
    has_padding = any(len(ids) != longest for ids in prompts)
    return Prefill(
        input_ids=torch.tensor([ids[prefix_length:] for ids in padded], device=device),
        pads=pads,
        prefix_columns=(columns[:prefix_length] - pads[:, None]).clamp(min=0),
        mask=columns >= pads[:, None] if has_padding else None,
        num_columns=longest,
    )
