"""Compute several algorithms' losses and gradients on one rollout batch; update nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rlkit.training.learner import Learner
from rlkit.training.update import UpdateSettings, accumulate, score
from rlkit.types import Algorithm, RolloutBatch

_CHUNK = 1 << 20


class Replayed(NamedTuple):
    """One algorithm's view of the batch, as one optimisation batch before any update."""

    loss: float
    grad_norm: float
    """2-norm of `gradient`."""
    num_tokens: int
    """Tokens that the loss used; an algorithm may take some rows only, such as pairs."""
    metrics: dict[str, float]
    """The algorithm's own."""
    gradient: Float[Tensor, " N"]
    """The gradient of the policy alone, its leaves one after the other; float32 or wider, on
    CPU."""


def replay(
    learner: Learner,
    batch: RolloutBatch,
    algorithms: Mapping[str, Algorithm],
    settings: UpdateSettings,
) -> dict[str, Replayed]:
    """Return every algorithm's loss and gradient on `batch` at the learner's parameters.

    The parameters stay bitwise as they are; gradients in their `.grad` are lost.

    Args:
        learner: The policy.
        batch: A saved batch of rollouts.
        algorithms: The algorithms to compare, by name.
        settings: The split into micro-batches and the temperature.

    Returns:
        The results, by the same names.
    """
    return {
        name: _replay(learner, batch, algorithm, settings) for name, algorithm in algorithms.items()
    }


def cosines(gradients: Sequence[Float[Tensor, " N"]]) -> Float[Tensor, "A A"]:
    """Return cos(g_i, g_j) = g_i . g_j / (|g_i| |g_j|) in float64; NaN where a norm is 0."""
    gram = _gram(gradients)
    norms = gram.diagonal().sqrt()
    return gram / (norms[:, None] * norms[None, :])


def _replay(
    learner: Learner, batch: RolloutBatch, algorithm: Algorithm, settings: UpdateSettings
) -> Replayed:
    scored = score(learner, batch, algorithm, settings)
    with torch.no_grad():
        train_batch = algorithm.prepare(scored)
    _forget_gradients(learner)
    try:
        metrics, _ = accumulate(learner, train_batch, algorithm, settings)
        gradient = _gradient(learner)
    finally:
        _forget_gradients(learner)
    return Replayed(
        loss=metrics.pop("loss"),
        grad_norm=float(_gram([gradient]).sqrt()),
        num_tokens=int(train_batch.loss_mask.sum()),
        metrics=metrics,
        gradient=gradient,
    )


def _gradient(learner: Learner) -> Tensor:
    leaves = learner.adapter.values()
    parts = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    return torch.cat([part.flatten() for part in parts]).cpu()


def _forget_gradients(learner: Learner) -> None:
    for leaf in learner.named_parameters().values():
        leaf.grad = None


def _gram(vectors: Sequence[Tensor]) -> Tensor:
    """Return all inner products in float64, chunk by chunk: no second copy of the gradients."""
    gram = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for parts in zip(*(torch.split(vector, _CHUNK) for vector in vectors), strict=True):
        rows = torch.stack(parts).double()
        gram += rows @ rows.T
    return gram
