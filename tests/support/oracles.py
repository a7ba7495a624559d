"""Independent truths for the objective: float64 Python loops, and the batches tests share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rlkit.algorithms import (
    AlgorithmConfig,
    CorrectionConfig,
    KLConfig,
    Objective,
    RatioConfig,
)
from rlkit.types import KLDirection, PolicyOutput, RolloutBatch, Setting

NO_KL = KLConfig(direction=KLDirection.none, beta=0.0)


def options(group: str) -> list[str]:
    """Names of a config group's files."""
    folder = Path(__file__).parents[2] / "conf" / group
    return sorted(path.stem for path in folder.glob("*.yaml"))


def objective(
    algorithm: AlgorithmConfig,
    *,
    kl: KLConfig = NO_KL,
    ratio: RatioConfig | None = None,
    correction: CorrectionConfig | None = None,
) -> Objective[AlgorithmConfig]:
    """An objective whose other axes are switched off."""
    return Objective(
        algorithm=algorithm,
        kl=kl,
        ratio=ratio or RatioConfig(),
        correction=correction or CorrectionConfig(),
    )


def setting(
    *, group_size: int, updates: int = 1, max_length: int = 6, microbatched: bool = False
) -> Setting:
    return Setting(group_size, max_length, updates, microbatched)


def random_rollout(
    *, lengths: Sequence[int], group_size: int, width: int = 6, seed: int = 0
) -> RolloutBatch:
    """Ragged random completions with distinct old, reference and sampling logps, in float64."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(lengths)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]

    def logps() -> Tensor:
        draw = -2.0 * torch.rand(rows, width, dtype=torch.float64, generator=generator)
        return draw.masked_fill(~mask, 0.0)

    old = logps()
    near = 0.3 * torch.randn(rows, width, dtype=torch.float64, generator=generator)
    components = torch.rand(rows, 2, dtype=torch.float64, generator=generator)
    weights = torch.tensor([1.0, 0.5], dtype=torch.float64)
    return RolloutBatch(
        prompt_ids=torch.ones(rows, 2, dtype=torch.long),
        prompt_mask=torch.ones(rows, 2, dtype=torch.bool),
        completion_ids=torch.ones(rows, width, dtype=torch.long),
        completion_mask=mask,
        sampling_logps=(old + 0.3 * near).masked_fill(~mask, 0.0),
        rewards=components @ weights,
        reward_components=components,
        reward_weights=weights,
        group_ids=torch.arange(rows) // group_size,
        truncated=torch.tensor([length == width for length in lengths]),
        policy_version=torch.zeros(rows, dtype=torch.long),
        old_logps=old,
        ref_logps=(old + near).masked_fill(~mask, 0.0),
        values=logps(),
    )


def in_turns(rollout: RolloutBatch) -> RolloutBatch:
    """The same rows, of which an environment wrote tokens 1 and 4 where others follow.

    A row of six tokens has three turns, of one, two and one sampled token.
    """
    sampled, width = rollout.completion_mask, rollout.completion_mask.shape[1]
    place = torch.arange(width)
    followed = place[None] < sampled.sum(dim=1, keepdim=True) - 1
    spliced = followed & ((place == 1) | (place == 4))
    mask = sampled & ~spliced
    turn_ids = spliced.cumsum(dim=1) * mask
    last = mask & ~torch.stack(
        [
            (mask[:, t + 1 :] & (turn_ids[:, t + 1 :] == turn_ids[:, t : t + 1])).any(dim=1)
            for t in range(width)
        ],
        dim=1,
    )
    earned = torch.rand(mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    turn_rewards = earned * last
    columns = {
        name: getattr(rollout, name).masked_fill(~mask, 0.0)
        for name in ("sampling_logps", "old_logps", "ref_logps", "values")
    }
    return replace(
        rollout,
        completion_mask=mask,
        spliced=spliced,
        turn_ids=turn_ids,
        turn_rewards=turn_rewards,
        rewards=turn_rewards.sum(dim=1),
        **columns,
    )


def leaf_outputs(rollout: RolloutBatch, *, seed: int = 1) -> PolicyOutput:
    """Policy outputs near the old policy, as leaves that collect gradients."""
    generator = torch.Generator().manual_seed(seed)
    shape = rollout.completion_mask.shape

    def leaf(base: Tensor, scale: float) -> Tensor:
        noise = scale * torch.randn(shape, dtype=torch.float64, generator=generator)
        return (base.detach() + noise).masked_fill(~rollout.completion_mask, 0.0).requires_grad_()

    old, zeros = rollout.old_logps, torch.zeros(shape, dtype=torch.float64)
    assert old is not None
    return PolicyOutput(leaf(old, 0.3), leaf(zeros, 1.0), leaf(zeros, 1.0), leaf(zeros, 1.0))


def as_outputs(tensors: Sequence[Tensor]) -> PolicyOutput:
    """Policy outputs with all four fields filled."""
    logps, entropy, values, full_kl = tensors
    return PolicyOutput(logps, entropy, values, full_kl)


def filled(out: PolicyOutput) -> list[Tensor]:
    """The four fields, all of which must be there."""
    return [x for x in out if x is not None]


def gradients(out: PolicyOutput) -> list[Tensor]:
    """Gradients of the four outputs, zeros where none arrived."""
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in filled(out)]


def loop_grpo_loss(
    logps: Tensor,
    old: Tensor,
    ref: Tensor,
    advantages: Sequence[float],
    mask: Tensor,
    *,
    low: float,
    high: float,
    beta: float,
) -> float:
    """DeepSeekMath eq. 3 with k3, token by token: mean over tokens of a row, then over rows."""
    total, rows = 0.0, 0
    for i in range(len(advantages)):
        tokens = [t for t in range(mask.shape[1]) if mask[i, t]]
        if not tokens:
            continue
        rows += 1
        row = 0.0
        for t in tokens:
            r = math.exp(float(logps[i, t]) - float(old[i, t]))
            clipped = min(max(r, 1 - low), 1 + high)
            d = float(ref[i, t]) - float(logps[i, t])
            row -= min(r * advantages[i], clipped * advantages[i])
            row += beta * (math.exp(d) - d - 1)
        total += row / len(tokens)
    return total / rows


def loop_group_advantages(
    rewards: Sequence[float], group_size: int, *, eps: float, bessel: bool
) -> list[float]:
    """(R - mean) / (std + eps) group by group."""
    result: list[float] = []
    for start in range(0, len(rewards), group_size):
        group = rewards[start : start + group_size]
        mean = sum(group) / len(group)
        squares = sum((r - mean) ** 2 for r in group)
        std = math.sqrt(squares / (len(group) - (1 if bessel else 0)))
        result += [(r - mean) / (std + eps) for r in group]
    return result


def loop_gae(
    rewards: Sequence[float], values: Sequence[float], *, gamma: float, lam: float
) -> list[float]:
    """The double sum of arXiv:1506.02438, eq. 16, without recursion."""
    n = len(rewards)
    following = [*values[1:], 0.0]
    delta = [rewards[t] + gamma * following[t] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)]
