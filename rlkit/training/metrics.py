"""Compute the metrics of a batch of rollouts, under TRL's names."""

from __future__ import annotations

import math
import resource
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from rlkit.functional import explained_variance
from rlkit.tracking.base import Passage, SampleRow
from rlkit.types import (
    EpisodeEnd,
    FinishReason,
    Group,
    Rollout,
    RolloutKind,
    ScoredRollout,
    TrainBatch,
)


def rollout_metrics(
    groups: Sequence[Group], reward_names: Sequence[str], *, kind: RolloutKind
) -> dict[str, float]:
    """Return lengths; of samples also rewards and the share of groups that teach nothing."""
    sampled = kind is RolloutKind.sampled
    return _length_metrics(groups) | (_reward_metrics(groups, reward_names) if sampled else {})


def _length_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Return lengths of completions, and the share of those that were cut."""
    samples = [sample for group in groups for sample in group]
    lengths = [sample.rollout.num_sampled for sample in samples]
    truncated = [sample.rollout.finish_reason is FinishReason.length for sample in samples]
    return {
        "completions/mean_length": mean(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": mean(float(t) for t in truncated),
    }


def _reward_metrics(groups: Sequence[Group], reward_names: Sequence[str]) -> dict[str, float]:
    """Return rewards and the share of groups that teach nothing.

    `reward_std` is the mean over groups of the standard deviation within a group (with Bessel's
    correction). `frac_reward_zero_std` is the share of groups whose rewards are all equal.
    `rewards/{name}/...` are the raw values of one function over the samples where it applied.
    """
    samples = [sample for group in groups for sample in group]
    rewards = [[sample.reward for sample in group] for group in groups]
    metrics = {
        "reward": mean(sample.reward for sample in samples),
        "reward_std": mean(_std(group) for group in rewards),
        "frac_reward_zero_std": mean(float(len(set(group)) == 1) for group in rewards),
    }
    for i, name in enumerate(reward_names):
        values = [s.components[i] for s in samples if not math.isnan(s.components[i])]
        metrics[f"rewards/{name}/mean"] = mean(values)
        metrics[f"rewards/{name}/std"] = _std(values)
    return metrics | episode_metrics([sample.rollout for sample in samples])


def episode_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return means over episodes: turns, other tokens, restarts, ends, and the world's numbers."""
    episodes = [rollout.episode for rollout in rollouts if rollout.episode is not None]
    if not episodes:
        return {}
    count = len(episodes)
    spliced = sum(len(r.completion_ids) - r.num_sampled for r in rollouts)
    sums: Counter[str] = Counter()
    for episode in episodes:
        for turn in episode.turns:
            sums.update(turn.info)
    afresh = sum(turn.afresh for episode in episodes for turn in episode.turns)
    return {
        "episodes/turns": sum(len(e.turns) for e in episodes) / count,
        "episodes/spliced_tokens": spliced / count,
        "episodes/restarts": afresh / count,
        **{
            f"episodes/end/{end}": sum(e.end is end for e in episodes) / count for end in EpisodeEnd
        },
        **{f"environment/{name}": value / count for name, value in sums.items()},
    }


def sample_row(sample: ScoredRollout, *, step: int, advantage: float | None = None) -> SampleRow:
    """Return the line that a sample gets in the completions tables."""
    rollout = sample.rollout
    return SampleRow(
        step=step,
        prompt_index=rollout.prompt.index,
        sample_index=rollout.sample_index,
        prompt=rollout.prompt.text,
        completion=sample.text,
        finish_reason=rollout.finish_reason.value,
        num_tokens=rollout.num_sampled,
        components=sample.components,
        reward=sample.reward,
        advantage=advantage,
        columns=rollout.prompt.columns,
        passages=tuple(
            Passage(text, True, sample.turn_rewards[i // 2]) if i % 2 == 0 else Passage(text, False)
            for i, text in enumerate(sample.passages)
        ),
    )


def sample_rows(
    groups: Sequence[Group],
    *,
    step: int,
    batch: TrainBatch | None,
    kind: RolloutKind = RolloutKind.sampled,
) -> list[SampleRow]:
    """Return a table row a sample; the advantage is the mean over its tokens that the loss uses.

    Args:
        groups: The samples of a step.
        step: The step, >= 0.
        batch: What was learnt from; None for an algorithm that reorders or drops rows (pairs),
            which has no advantage per sample.
        kind: Targets get no rows, for they are the data's.
    """
    if kind is RolloutKind.targets:
        return []
    samples = [sample for group in groups for sample in group]
    advantages: list[float | None] = [None] * len(samples)
    if batch is not None and len(batch) == len(samples) and batch.returns is None:
        counts = batch.loss_mask.sum(1).clamp(min=1)
        advantages = (batch.advantages.sum(1) / counts).tolist()
    return [
        sample_row(sample, step=step, advantage=advantage)
        for sample, advantage in zip(samples, advantages, strict=True)
    ]


def critic_metrics(batch: TrainBatch) -> dict[str, float]:
    """Say how much of the returns the critic explained before this batch; {} without a critic."""
    values = batch.rollout.values
    if values is None or batch.returns is None:
        return {}
    explained = explained_variance(values, batch.returns, batch.loss_mask)
    return {"value/explained_variance": float(explained)}


def memory_metrics(device: torch.device) -> dict[str, float]:
    """Return the peak resident memory of this process, and on CUDA two peaks of this step.

    One is the allocator's. The other is what the device counts: the allocator's peak of reserved
    memory and all that is in use beside it.
    """
    kib = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kib
    metrics = {"memory/rss_bytes": float(peak)}
    if device.type == "cuda":
        metrics["memory/cuda_peak_bytes"] = float(torch.cuda.max_memory_allocated(device))
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.max_memory_reserved(device) - torch.cuda.memory_reserved(device)
        metrics["memory/device_peak_bytes"] = float(total - free + reserved)
    return metrics


def mean(values: Iterable[float]) -> float:
    """Return the arithmetic mean; NaN of nothing."""
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan


def average(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the updates that reported it."""
    names = dict.fromkeys(name for m in metrics for name in m)
    return {name: mean(m[name] for m in metrics if name in m) for name in names}


def _std(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    center = mean(values)  # statistics.stdev works in fractions, a hundred times slower
    return math.sqrt(math.fsum((v - center) ** 2 for v in values) / (len(values) - 1))
