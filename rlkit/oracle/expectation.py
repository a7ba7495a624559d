"""The expected loss and gradient of a shipped `Algorithm` are exact sums over all completions.

The algorithm's own `prepare` and `loss` run on a batch that holds every group of G completions.
Their derivatives with respect to the logps are weighted with the probability of each group under
the behaviour policy and carried to the parameters. No sampling, no reimplementation.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple, cast

import torch
from torch import Tensor

from rlkit.oracle.tree import (
    Model,
    Tree,
    bucketed,
    entropy_of,
    enumerate_tree,
    full_kl_of,
    logps_of,
    probabilities,
    tabular,
    tied,
    waves,
)
from rlkit.types import Algorithm, KLDirection, PolicyOutput, RolloutBatch, TrainBatch


class Denominator(StrEnum):
    """The algorithm's aggregation divides by this number."""

    sequences = "sequences"
    tokens = "tokens"


class World(NamedTuple):
    """A world is a policy, its reference, the policy that sampled, and rewards, over one tree."""

    tree: Tree
    model: Model
    theta: Tensor
    ref_table: Tensor
    behaviour: Tensor
    """(S, V) log-probabilities that completions are drawn from; also the stored old policy."""
    rewards: Tensor
    """(N,)"""
    turn_rewards: Tensor | None = None
    """(N, T) the part of each turn at its last sampled word; None = there is one turn."""

    @property
    def table(self) -> Tensor:
        return self.model.table(self.theta)


def world(*, parametrisation: str, on_policy: bool, drift: float = 0.8) -> World:
    """Return the worlds of the tests and of `docs/objective.md`.

    They are `tab` or `tied`, on- or off-policy.

    `drift` is how far the behaviour policy's parameters are from the policy's, off-policy.
    """
    tree = enumerate_tree(vocabulary=3, max_length=3)
    rewards = (waves(len(tree), phase=1.0, scale=1.0) > 0).to(torch.float64)
    return world_over(
        tree, rewards, parametrisation=parametrisation, on_policy=on_policy, drift=drift
    )


def world_over(
    tree: Tree, rewards: Tensor, *, parametrisation: str, on_policy: bool, drift: float
) -> World:
    """Return a world whose completions are those of `tree`.

    Args:
        tree: All completions.
        rewards: (N,) their rewards.
        parametrisation: `tab` or `tied`.
        on_policy: Whether the policy itself samples.
        drift: The distance of the policy that samples, if it is another one.
    """
    model = {"tab": tabular, "tied": tied}[parametrisation](tree)
    theta = waves(model.num_parameters, phase=0.1, scale=0.9)
    reference = model.table(theta + waves(model.num_parameters, phase=2.0, scale=0.5))
    step = waves(model.num_parameters, phase=4.0, scale=0.0 if on_policy else drift)
    behaviour = model.table(theta + step)
    return World(tree, model, theta, reference, behaviour, rewards)


class Moments(NamedTuple):
    """These are moments of the gradient of one completion under the behaviour policy."""

    gradient: Tensor
    """(d,) expected gradient."""
    deviation: Tensor
    """Root of the trace of the gradient's covariance."""


class Sum(NamedTuple):
    """This record has all groups of G completions as one batch, and their weights.

    The batch has unit denominators.
    """

    batch: TrainBatch
    sequence: Tensor
    """(rows,) index of each row's completion."""
    row_weight: Tensor
    """(rows,) probability of the row's group / denominator of the group."""


def expected_gradient(
    w: World,
    algorithm: Algorithm,
    *,
    group_size: int = 1,
    denominator: Denominator = Denominator.sequences,
) -> Tensor:
    """Return the exact E[grad loss] of a batch that is one group, of shape (d,).

    Args:
        w: The world whose completions are enumerated.
        algorithm: The algorithm whose `prepare` and `loss` run.
        group_size: Completions in the group, >= 1.
        denominator: The number that the aggregation divides by.

    Returns:
        The gradient by the world's parameters, float64.
    """
    total = all_groups(w, algorithm, group_size=group_size, denominator=denominator)
    theta = w.theta.detach().requires_grad_()
    now, cotangents = outputs_of(w, algorithm, theta), derivatives(w, algorithm, total)
    terms = [
        (now[field][total.sequence] * cotangent * total.row_weight[:, None]).sum()  # type: ignore[index]
        for field, cotangent in cotangents.items()
    ]
    if not terms:
        return torch.zeros_like(theta)
    (gradient,) = torch.autograd.grad(torch.stack(terms).sum(), theta)
    return gradient


def moments(w: World, algorithm: Algorithm) -> Moments:
    """Return the expected gradient and its standard deviation for batches of one completion."""
    total = all_groups(w, algorithm, group_size=1, denominator=Denominator.sequences)
    rows = row_gradients(w, algorithm, total)
    gradient = (total.row_weight[:, None] * rows).sum(dim=0)
    variance = (total.row_weight[:, None] * (rows - gradient).square()).sum()
    return Moments(gradient, variance.sqrt())


def expected_value(w: World, algorithm: Algorithm) -> Tensor:
    """Return E[loss] for batches of one completion, one call of the loss for each."""
    total = all_groups(w, algorithm, group_size=1, denominator=Denominator.sequences)
    now = outputs_of(w, algorithm, w.theta)
    values = []
    for row in range(len(total.sequence)):
        index = torch.tensor([row])
        out = [None if x is None else x[total.sequence[index]] for x in now]
        one = algorithm.loss(PolicyOutput(*out), total.batch.rows(index))  # type: ignore[arg-type]
        values.append(one.loss.detach())
    return (total.row_weight * torch.stack(values)).sum()


def all_groups(w: World, algorithm: Algorithm, *, group_size: int, denominator: Denominator) -> Sum:
    """Run `prepare` on every group of `group_size` completions, in order, with replacement.

    Args:
        w: The world whose completions are enumerated.
        algorithm: The algorithm whose `prepare` runs.
        group_size: Completions in a group, >= 1.
        denominator: The number that the aggregation divides by.

    Returns:
        All groups as one batch, with the completion and the weight of each row.
    """
    indices = torch.cartesian_prod(*[torch.arange(len(w.tree))] * group_size).view(-1, group_size)
    weights = probabilities(w.tree, w.behaviour)[indices].prod(dim=1)
    batch = algorithm.prepare(rollout_of(w, indices))
    group_ids, sequence = batch.rollout.group_ids, batch.rollout.prompt_ids[:, 0]
    kept = batch.loss_mask.sum(dim=1)
    counts = kept if denominator is Denominator.tokens else (kept > 0).long()
    divisor = torch.zeros_like(weights).index_add_(0, group_ids, counts.to(weights))
    row_weight = (weights / divisor.clamp(min=1))[group_ids]
    return Sum(replace(batch, num_tokens=1, num_sequences=1), sequence, row_weight)


def derivatives(w: World, algorithm: Algorithm, total: Sum) -> dict[int, Tensor]:
    """Return d loss / d field of `PolicyOutput`, (rows, T) each, for fields with a gradient."""
    now = outputs_of(w, algorithm, w.theta)
    leaves = [None if x is None else x[total.sequence].detach().requires_grad_() for x in now]
    loss = algorithm.loss(PolicyOutput(*leaves), total.batch).loss  # type: ignore[arg-type]
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    return {
        field: leaf.grad
        for field, leaf in enumerate(leaves)
        if leaf is not None and leaf.grad is not None
    }


def row_gradients(w: World, algorithm: Algorithm, total: Sum) -> Tensor:
    """Return (rows, d) gradient of each row's loss."""
    cotangents = derivatives(w, algorithm, total)
    if not cotangents:
        return torch.zeros(len(total.sequence), len(w.theta), dtype=torch.float64)

    def rows(theta: Tensor) -> Tensor:
        now = outputs_of(w, algorithm, theta)
        return torch.stack([(now[f][total.sequence] * c).sum(dim=1) for f, c in cotangents.items()])  # type: ignore[index]

    return cast(Tensor, torch.func.jacrev(rows)(w.theta)).sum(dim=0)


def rollout_of(w: World, indices: Tensor, *, critic: Tensor | None = None) -> RolloutBatch:
    """Return the rollout batch of completions `indices` (groups, G); `prompt_ids` has their index.

    `critic` (S,) gives the values of prefixes, 0 without one.
    """
    flat = indices.flatten()
    old = logps_of(w.tree, w.behaviour)[flat]
    rewards = w.rewards[flat]
    zeros = torch.zeros(len(flat), dtype=torch.long)
    return RolloutBatch(
        prompt_ids=flat[:, None],
        prompt_mask=torch.ones(len(flat), 1, dtype=torch.bool),
        completion_ids=w.tree.ids[flat],
        completion_mask=w.tree.mask[flat],
        sampling_logps=old,
        rewards=rewards,
        reward_components=rewards[:, None],
        reward_weights=torch.ones(1, dtype=torch.float64),
        group_ids=torch.arange(len(indices)).repeat_interleave(indices.shape[1]),
        truncated=zeros.bool(),
        policy_version=zeros,
        old_logps=old,
        ref_logps=logps_of(w.tree, w.ref_table)[flat],
        values=torch.zeros_like(old) if critic is None else critic[w.tree.states[flat]],
        spliced=None if w.tree.spliced is None else w.tree.spliced[flat],
        turn_ids=None if w.tree.turn_ids is None else w.tree.turn_ids[flat],
        turn_rewards=None if w.turn_rewards is None else w.turn_rewards[flat],
    )


def outputs_of(w: World, algorithm: Algorithm, theta: Tensor) -> PolicyOutput:
    """Return what the policy's forward pass would give for every completion of the tree."""
    table = w.model.table(theta)
    full_kl, spec = None, algorithm.outputs.full_kl
    if spec is not None:
        policy, reference = table, w.ref_table
        if spec.top_k is not None:
            policy = bucketed(table, w.ref_table, spec.top_k)
            reference = bucketed(w.ref_table, w.ref_table, spec.top_k)
        reverse = spec.direction is KLDirection.reverse
        full_kl = full_kl_of(w.tree, *((policy, reference) if reverse else (reference, policy)))
    logps = logps_of(w.tree, table)
    values = torch.zeros_like(logps) if algorithm.outputs.values else None
    return PolicyOutput(logps, entropy_of(w.tree, table), values, full_kl)
