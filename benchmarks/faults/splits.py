"""F19: the gradient does not depend on the split into micro-batches, in float64."""

from __future__ import annotations

from pathlib import Path

import torch
from oracles import as_outputs, filled, leaf_outputs, options, random_rollout, setting
from torch import Tensor

from benchmarks.faults.row import Row
from rlkit.algorithms import build
from rlkit.oracle.compose import composed
from rlkit.types import Algorithm, PolicyOutput

_GROUP = 4
_LENGTHS = (6, 1, 3, 2, 4, 5, 6, 2, 3, 3, 1, 6)
_LIMIT = 1e-10
_SHARED = 8
"""Parameters that all rows share, whose gradient is compared."""
_WHOLE_BATCHES_ONLY = ("bnpo",)  # its denominator is that of the micro-batch, by definition


def run(count: int, folder: Path) -> Row:
    """Split batches of every algorithm in `count` random orders and sizes altogether.

    Survived is a split whose gradient is that of the whole batch within 1e-10 of its norm.
    """
    names = [n for n in options("algorithm") if n not in _WHOLE_BATCHES_ONLY]
    draw = torch.Generator().manual_seed(19)
    survived, worst = 0, 0.0
    for number in range(count):
        error = _error(_algorithm(names[number % len(names)]), seed=number, draw=draw)
        worst = max(worst, error)
        survived += error <= _LIMIT
    note = f"{len(names)} algorithms; largest distance {worst:.1e} of the gradient's norm"
    return Row("F19 random splits of a batch", count, survived, count - survived, note)


def _algorithm(name: str) -> Algorithm:
    objective = composed(f"algorithm={name}", f"algorithm.group_size={_GROUP}")
    alone = objective.ratio.old == "current" and not objective.ratio.detach
    facts = setting(group_size=_GROUP, updates=1 if alone else 2, microbatched=True)
    return build(objective, facts)


def _error(algorithm: Algorithm, *, seed: int, draw: torch.Generator) -> float:
    rollout = random_rollout(lengths=_LENGTHS, group_size=_GROUP, seed=seed)
    batch = algorithm.prepare(rollout)
    outputs = [tensor.detach() for tensor in filled(leaf_outputs(batch.rollout))]
    features = [torch.randn(*t.shape, _SHARED, dtype=t.dtype, generator=draw) for t in outputs]
    whole = torch.zeros(_SHARED, dtype=torch.float64, requires_grad=True)
    parts = torch.zeros(_SHARED, dtype=torch.float64, requires_grad=True)
    everything = torch.arange(len(batch))
    _backward(algorithm.loss(_outputs(outputs, features, whole, everything), batch).loss)
    unit = algorithm.rows_per_unit
    order = torch.randperm(len(batch) // unit, generator=draw)
    cuts = 1 + int(torch.randint(len(order), (1,), generator=draw))
    for units in torch.tensor_split(order, cuts):
        index = (units[:, None] * unit + torch.arange(unit)).flatten()
        part = _outputs(outputs, features, parts, index)
        _backward(algorithm.loss(part, batch.rows(index)).loss)
    if whole.grad is None or parts.grad is None:  # a loss without a gradient has none in any split
        return 0.0 if whole.grad is parts.grad else 1.0
    return float((parts.grad - whole.grad).norm() / whole.grad.norm().clamp(min=1e-300))


def _outputs(
    outputs: list[Tensor], features: list[Tensor], shared: Tensor, index: Tensor
) -> PolicyOutput:
    """Return the outputs of some rows as a linear function of parameters that all rows share."""
    return as_outputs(
        [t[index] + f[index] @ shared.to(t.dtype) for t, f in zip(outputs, features, strict=True)]
    )


def _backward(loss: Tensor) -> None:
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
