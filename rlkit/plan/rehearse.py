"""The worst step is tried on the device itself before the first: its needs show now, not at night.

Forward and backward of the longest prompt and completion as often as a micro-batch holds them, with
the real policy and the real loss. Nothing changes: no optimiser step, gradients dropped, random
generators put back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from rlkit.plan.choose import Plan
from rlkit.plan.device import Meter
from rlkit.plan.parts import GB
from rlkit.plan.work import Work
from rlkit.policy.policy import Policy
from rlkit.training.backward import backward
from rlkit.types import Algorithm, Column, RolloutBatch, TrainBatch

_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Worst:
    """A run can meet no larger micro-batch than this."""

    num_rows: int
    max_prompt: int
    max_completion: int
    temperature: float
    reserve_bytes: int
    """Held meanwhile in place of what comes later: the optimiser's moments."""


def worst_of(plan: Plan, work: Work, *, temperature: float) -> Worst:
    """Return as many rows of full length as a micro-batch of `plan` takes."""
    fitting = min(plan.choice.tokens_per_microbatch // work.row_tokens, work.num_rows)
    return Worst(
        num_rows=max(1, fitting // work.rows_per_unit) * work.rows_per_unit,
        max_prompt=work.max_prompt,
        max_completion=work.max_completion,
        temperature=temperature,
        reserve_bytes=work.moment_bytes,
    )


def rehearse(policy: Policy, algorithm: Algorithm, worst: Worst, meter: Meter) -> int:
    """Run the worst step once, and measure it.

    Args:
        policy: The policy that will train; its parameters stay as they are.
        algorithm: The algorithm whose loss runs.
        worst: The largest micro-batch of the plan.
        meter: The count of the device's bytes.

    Returns:
        Bytes of the run at the peak.

    Raises:
        ValueError: The bytes are not there.
    """
    device = meter.device
    devices = [device] if device.type == "cuda" else []
    leaves = policy.named_parameters().values()
    earlier = meter.peak()
    meter.restart()
    with torch.random.fork_rng(devices=devices):
        try:
            reserve = torch.empty(worst.reserve_bytes, dtype=torch.uint8, device=device)
            _forward_backward(policy, algorithm, _worst_batch(policy, algorithm, worst), worst)
            del reserve
            peak = meter.peak()
        except torch.OutOfMemoryError as error:
            peak = meter.peak()
            raise ValueError(
                f"memory must hold the longest prompt and completion, got out of memory at "
                f"{peak / GB:.2f} GB; memory.budget={0.9 * peak / GB:.1f}GB plans with less"
            ) from error
        finally:
            meter.highest = max(meter.highest, earlier)
            for leaf in leaves:
                leaf.grad = None
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return peak


def _forward_backward(
    policy: Policy, algorithm: Algorithm, batch: TrainBatch, worst: Worst
) -> None:
    output = policy.forward(
        batch.rollout,
        adapter=policy.adapter,
        temperature=worst.temperature,
        spec=algorithm.outputs,
    )
    loss = algorithm.loss(output, batch).loss
    backward(loss)


def _worst_batch(policy: Policy, algorithm: Algorithm, worst: Worst) -> TrainBatch:
    device = policy.head.weight.device
    rows = worst.num_rows
    rollout = full_batch(
        (rows, worst.max_prompt, worst.max_completion),
        num_words=policy.head.weight.shape[0],
        device=device,
    )
    zeros = torch.zeros_like(rollout.sampling_logps)
    rollout = replace(
        rollout,
        group_ids=torch.arange(rows, device=device),  # no prompt is shared
        old_logps=zeros if Column.old_logps in algorithm.needs else None,
        ref_logps=zeros if Column.ref_logps in algorithm.needs else None,
        values=zeros if Column.values in algorithm.needs else None,
    )
    return TrainBatch.prepared(
        rollout,
        loss_mask=rollout.completion_mask,
        advantages=zeros + 1.0,
        returns=zeros if algorithm.outputs.values else None,
    )


def full_batch(
    shape: tuple[int, int, int], *, num_words: int, device: torch.device
) -> RolloutBatch:
    """Return one group of random ids: (rows, prompt tokens, completion tokens), of full length."""
    rows, prompt, completion = shape
    generator = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(num_words, (rows, prompt + completion), generator=generator).to(device)
    mask = torch.ones(rows, prompt + completion, dtype=torch.bool, device=device)
    zeros = torch.zeros(rows, completion, device=device)
    rewards = torch.arange(rows, dtype=torch.float32, device=device)
    return RolloutBatch(
        prompt_ids=ids[:, :prompt],
        prompt_mask=mask[:, :prompt],
        completion_ids=ids[:, prompt:],
        completion_mask=mask[:, prompt:],
        sampling_logps=zeros,
        rewards=rewards,
        reward_components=rewards[:, None],
        reward_weights=torch.ones(1, device=device),
        group_ids=torch.zeros(rows, dtype=torch.long, device=device),
        truncated=mask[:, 0],
        policy_version=torch.zeros(rows, dtype=torch.long, device=device),
    )
