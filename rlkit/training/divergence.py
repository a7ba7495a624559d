"""Measure how far the policy is from the reference: one estimator for every objective.

The loss's own KL term measures each variant with its own ruler; this one is the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from rlkit.functional import reverse_k3
from rlkit.ranks import ALONE, Ranks
from rlkit.runtime.host_memory import return_free_pages
from rlkit.training.collate import collate
from rlkit.training.learner import Learner
from rlkit.training.microbatch import microbatches, share_of
from rlkit.training.out_of_memory import within_memory
from rlkit.types import FullKL, KLDirection, OutputSpec, Rollout, RolloutBatch, ScoredRollout


class EvalKL(StrEnum):
    """This is the estimator of KL(policy || reference) in held-out evaluation."""

    exact = "exact"
    """Summed over the vocabulary at every sampled prefix; costs a scoring pass of both policies."""
    k3 = "k3"
    """k3 of the sampled tokens: the same mean, more noise, as many passes."""
    none = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceMeter:
    """A meter scores samples of the policy under the policy and under the reference."""

    learner: Learner
    estimator: EvalKL
    """exact or k3."""
    temperature: float
    """The temperature of the samples; both policies are tempered alike."""
    pad_token_id: int
    device: torch.device
    tokens_per_microbatch: int
    ranks: Ranks = ALONE
    """Each rank measures its share of the samples."""

    def __call__(self, groups: Sequence[Sequence[Rollout]]) -> dict[str, float]:
        """Return `kl` (nats a completion, mean over samples), `entropy` (nats, mean over tokens).

        kl = E[sum over t of KL(policy || ref at the prefix before token t)]. When `groups` are the
        policy's own, it is an unbiased estimate of the KL between the two distributions of
        completions.
        """
        on_cpu = self.device.type == "cpu"
        batch = _batch(groups, pad_token_id=self.pad_token_id, device=self.device)
        if on_cpu:
            return_free_pages()  # the update's, which are of other sizes
        (kl, entropy), _ = within_memory(
            lambda tokens: self.ranks.together(partial(self._measure, batch, tokens)),
            budget=self.tokens_per_microbatch,
            batch=batch,
            divisor=1,
        )
        if on_cpu:
            return_free_pages()
        self.ranks.add([kl, entropy])
        mask = batch.completion_mask
        kl = kl.masked_fill(~mask, 0.0).sum(dim=1)
        return {
            "kl": float(kl.double().mean()),
            "entropy": float(entropy[mask].double().mean()),
        }

    @torch.no_grad()
    def _measure(
        self, batch: RolloutBatch, max_tokens: int
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
        """Return both of every token of this rank's rows, 0 in the others."""
        exact = self.estimator is EvalKL.exact
        full_kl = FullKL(KLDirection.reverse) if exact else None
        spec = OutputSpec(entropy=True, full_kl=full_kl)
        kl, entropy = (torch.zeros_like(batch.sampling_logps) for _ in range(2))
        plan = microbatches(batch, max_tokens=max_tokens, ranks=self.ranks)
        for rows, counts in share_of(plan, batch, self.ranks):
            index = rows.to(self.device)
            micro = batch.rows(index)
            adapter = self.learner.adapter
            out = self.learner.forward(
                micro, adapter=adapter, temperature=self.temperature, spec=spec
            )
            per_token = out.full_kl
            if per_token is None:
                reference = self.learner.forward(
                    micro, adapter=None, temperature=self.temperature, spec=OutputSpec()
                )
                per_token = reverse_k3(out.logps, reference.logps)
            if out.entropy is None:
                raise RuntimeError("the policy returned no entropy")
            if not counts:
                continue
            kl[index] = per_token.to(kl.dtype)
            entropy[index] = out.entropy.to(entropy.dtype)
        return kl, entropy


def _batch(
    groups: Sequence[Sequence[Rollout]], *, pad_token_id: int, device: torch.device
) -> RolloutBatch:
    """Make a batch of the samples without rewards: a failed reward function must hide no KL."""
    unscored = [
        [ScoredRollout(rollout=r, text="", components=(), reward=0.0) for r in group]
        for group in groups
    ]
    return collate(unscored, reward_weights=(), pad_token_id=pad_token_id, device=device)
