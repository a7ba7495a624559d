"""Evaluation by enumeration gives expected reward, KL and entropy without sampling error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rlkit.tabular.policy import TabularPolicy
from rlkit.tabular.world import TabularWorld
from rlkit.tracking.base import EvalRecord, Measure
from rlkit.tracking.intervals import evaluate


class Expectations(NamedTuple):
    """This record has exact numbers of a policy, for each prompt."""

    reward: Float[Tensor, " P"]
    kl: Float[Tensor, " P"]
    """KL(policy || reference) of whole completions, nats."""
    entropy: Float[Tensor, " P"]
    """The value is nats of a completion."""
    length: Float[Tensor, " P"]
    wrong_length: Float[Tensor, " P"]
    """Expected length times the indicator of reward 0: divide by 1 - reward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactEvaluator:
    """This is the exact counterpart of `rlkit.training.evaluate.Evaluator`, on training prompts."""

    policy: TabularPolicy
    temperature: float

    def __call__(self, label: str, steps_done: int) -> EvalRecord:
        """Return one evaluation; its values are the expected rewards of the prompts."""
        with torch.no_grad():
            found = expectations(self.policy.world, self.policy.logits, self.temperature)
        wrong = float((1.0 - found.reward).sum())
        metrics = {
            "kl": float(found.kl.mean()),
            "entropy": float(found.entropy.sum() / found.length.sum()),
            "reward": float(found.reward.mean()),
            "length": float(found.length.mean()),
            "length_wrong": float(found.wrong_length.sum()) / wrong if wrong > 0 else float("nan"),
        }
        values = found.reward.clamp(0.0, 1.0).tolist()  # rewards are 0 or 1: only rounding is cut
        return evaluate(
            label=label,
            step=steps_done,
            prompt_indices=range(len(values)),
            values=values,
            measure=Measure.reward,
            samples_per_prompt=0,
            metrics=metrics,
        )


def expectations(
    world: TabularWorld, logits: Float[Tensor, "P S V"], temperature: float = 1.0
) -> Expectations:
    """Return sums over all N completions of each prompt."""
    tree = world.tree
    table, reference = ((x / temperature).log_softmax(dim=-1) for x in (logits, world.ref_logits))
    logps, ref_logps = (
        x[:, tree.states, tree.ids].masked_fill(~tree.mask, 0.0).sum(dim=-1)
        for x in (table, reference)
    )
    chances, lengths = logps.exp(), tree.mask.sum(dim=1).to(torch.float64)
    return Expectations(
        reward=(chances * world.rewards).sum(dim=1),
        kl=(chances * (logps - ref_logps)).sum(dim=1),
        entropy=-(chances * logps).sum(dim=1),
        length=chances @ lengths,
        wrong_length=(chances * (1.0 - world.rewards)) @ lengths,
    )
