"""Turn one rollout batch into optimiser updates: parameters change nowhere else."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rlkit.ranks import ALONE, Ranks
from rlkit.runtime.garbage import garbage_waits
from rlkit.runtime.torch_compat import scale_all_
from rlkit.training.backward import backward
from rlkit.training.learner import Learner
from rlkit.training.loss_scale import UNSCALED, LossScale
from rlkit.training.microbatch import train_microbatches
from rlkit.training.optim import OptimConfig, learning_rate
from rlkit.training.out_of_memory import Result, within_memory
from rlkit.training.sharded import Sharded
from rlkit.training.sums import whole_gradients
from rlkit.types import Algorithm, RolloutBatch, TrainBatch

Metrics = dict[str, float]


@dataclass(slots=True, kw_only=True)
class TrainState:
    """Handles whose contents change in place, in `train_step` alone, and the counts of a run."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Steps completed."""
    updates: int = 0
    """Optimiser updates done: the policy version."""
    skipped_in_row: int = 0
    """Consecutive updates skipped because the gradient was not finite."""
    no_reward_in_row: int = 0
    """Last steps in a row in which no sample had a reward."""
    no_signal_in_row: int = 0
    """Last steps in a row in which no sample earned anything and no group's rewards differed."""
    samples: int = 0
    """Completions sampled so far, those that a filter dropped included."""
    train_seconds: float = 0.0
    """Seconds of the steps so far, evaluations excluded."""
    loss_scale: LossScale = UNSCALED
    """1 but for a policy that computes in float16."""
    microbatch_divisor: int = 1
    """Tokens of a micro-batch are divided by this since memory ran out; 1 = it never did."""
    success: dict[str, float] = field(default_factory=dict)
    """How often each part of a mixture was right, for a curriculum; empty without one."""
    updating: bool = False
    """True while a step's updates are under way: the parameters belong to no finished step."""


class UpdateSettings(NamedTuple):
    """The split of a batch and the steps on it; the split can change no number."""

    optim: OptimConfig
    total_updates: int
    temperature: float
    tokens_per_microbatch: int
    share_prompts: bool = True
    """Whether the learner computes equal prompts of a micro-batch once."""
    ranks: Ranks = ALONE
    """Each rank computes its share of the micro-batches, and gets the sum over all."""


class UpdateResult(NamedTuple):
    """This is the report of one optimiser update."""

    metrics: dict[str, float]
    logps: Float[Tensor, "B C"]
    """Logps before the update, detached: no extra forward pass is needed to measure mismatch."""


class NonFiniteGradients(RuntimeError):
    """Too many updates in a row had a loss or a gradient that is not finite."""


def train_step(
    state: TrainState, batch: TrainBatch, algorithm: Algorithm, settings: UpdateSettings
) -> tuple[TrainState, UpdateResult]:
    """Make one optimiser update on one optimisation batch.

    Micro-batch losses are sums over the batch's global denominators, so the accumulated gradient
    does not depend on the split. Memory that runs out makes the split finer. A loss or a gradient
    that is not finite is dropped: no parameter and no moment changes.

    Args:
        state: The learner, its optimiser, and the loss scale; it is changed in place.
        batch: The prepared rows.
        algorithm: The algorithm whose loss runs.
        settings: The split into micro-batches, the temperature, and the optimiser's options.

    Returns:
        The state, and the report of the update.

    Raises:
        NonFiniteGradients: `optim.max_skipped_updates` updates in a row were dropped.
    """
    scale = state.loss_scale
    while True:
        factor = scale.value

        def gradient(split: UpdateSettings, factor: float = factor) -> tuple[Metrics, Tensor]:
            state.optimizer.zero_grad(set_to_none=True)
            owners = _owners(state)
            return accumulate(
                state.learner, batch, algorithm, split, loss_scale=factor, owners=owners
            )

        metrics, logps = fit_in_memory(state, batch.rollout, settings, gradient)
        norms = _clip(state.optimizer, settings.optim, loss_scale=factor)
        finite = all(map(math.isfinite, [*norms, metrics["loss"]]))
        # Too large a scale costs another pass over the same batch, never the update.
        if finite or scale.value == 1.0 or not math.isfinite(metrics["loss"]):
            break
        scale = scale.smaller()
    if finite:  # else the scale was not to blame
        state.loss_scale = scale.after_update()
    if scale.limit > 1.0:
        metrics["loss_scale"] = scale.value
    return state, UpdateResult(metrics | _apply(state, settings, norms, finite=finite), logps)


def fit_in_memory(
    state: TrainState,
    batch: RolloutBatch,
    settings: UpdateSettings,
    work: Callable[[UpdateSettings], Result],
) -> Result:
    """Return what `work` returns with micro-batches that fit; `state` keeps how small they got.

    Args:
        state: Its `microbatch_divisor` grows when memory runs out.
        batch: The rows that `work` splits.
        settings: The split that the plan allows.
        work: It must start from nothing each time.

    Returns:
        The result of `work`.

    Raises:
        torch.OutOfMemoryError: Rows do not fit even one by one.
    """
    result, fitted = within_memory(
        lambda tokens: work(settings._replace(tokens_per_microbatch=tokens)),
        budget=settings.tokens_per_microbatch,
        batch=batch,
        divisor=state.microbatch_divisor,
    )
    state.microbatch_divisor = fitted.divisor
    return result


@garbage_waits()
def accumulate(
    learner: Learner,
    batch: TrainBatch,
    algorithm: Algorithm,
    settings: UpdateSettings,
    *,
    loss_scale: float = 1.0,
    owners: Sequence[int] = (),
) -> tuple[dict[str, float], Tensor]:
    """Add the gradient of the loss on `batch` to the leaves' `.grad`, one micro-batch at a time.

    Args:
        learner: The policy.
        batch: The prepared rows.
        algorithm: The algorithm whose loss runs.
        settings: The split into micro-batches and the temperature.
        loss_scale: The gradient is that of this times the loss; what is returned is not scaled.
        owners: The rank that keeps each leaf's gradient; empty = all do.

    Returns:
        The metrics with `loss` among them, and the logps (B C), detached.
    """
    own = partial(_own_gradient, learner, batch, algorithm, settings, loss_scale)
    metrics, logps = settings.ranks.together(own)
    whole_gradients([*learner.named_parameters().values()], logps, settings.ranks, owners)
    return settings.ranks.add_numbers(metrics), logps


def _own_gradient(
    learner: Learner,
    batch: TrainBatch,
    algorithm: Algorithm,
    settings: UpdateSettings,
    loss_scale: float,
) -> tuple[Metrics, Tensor]:
    """Do as `accumulate` with the rows of this rank; the logps of the others are 0.

    Args:
        learner: The policy.
        batch: The prepared rows, of all ranks.
        algorithm: The algorithm whose loss runs.
        settings: The split into micro-batches and the temperature.
        loss_scale: As in `accumulate`.

    Returns:
        This rank's part of the metrics and of the logps.
    """
    logps = torch.zeros_like(batch.rollout.sampling_logps)
    sums: dict[str, Tensor] = defaultdict(lambda: logps.new_zeros(()))
    learns = False
    for index, with_gradient, counts in train_microbatches(
        batch,
        algorithm,
        max_tokens=settings.tokens_per_microbatch,
        share_prompts=settings.share_prompts,
        ranks=settings.ranks,
    ):
        micro = batch.rows(index)
        with torch.set_grad_enabled(with_gradient):
            output = learner.forward(
                micro.rollout,
                adapter=learner.adapter,
                temperature=settings.temperature,
                spec=algorithm.outputs,
            )
            loss, metrics = algorithm.loss(output, micro)
        if with_gradient:
            learns = True
            factor = loss_scale if counts else 0.0
            backward(loss if factor == 1.0 else loss * factor)
        if not counts:
            continue
        logps[index] = output.logps.detach().to(logps.dtype)
        for name, value in {**metrics, "loss": loss.detach()}.items():
            sums[name] += value
    if not learns:  # an optimiser takes missing gradients for frozen parameters
        for leaf in learner.named_parameters().values():
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    # One transfer for all metrics: with a `float()` each, the host would wait for the device often.
    totals = torch.stack(list(sums.values())).tolist() if sums else []
    return dict(zip(sums, totals, strict=True)), logps


def _clip(
    optimizer: torch.optim.Optimizer, optim: OptimConfig, *, loss_scale: float
) -> list[float]:
    """Undo `loss_scale`, clip, and return the norm before clipping, of each parameter group."""
    norms = []
    for group in optimizer.param_groups:
        gradients = [leaf.grad for leaf in group["params"] if leaf.grad is not None]
        if loss_scale != 1.0 and gradients:
            scale_all_(gradients, 1.0 / loss_scale)
        # Each group by itself: a critic's large gradients must not shrink the policy's.
        leaves, most = group["params"], optim.max_grad_norm
        if isinstance(optimizer, Sharded):
            norm = optimizer.norm(leaves)
            torch.nn.utils.clip_grads_with_norm_(leaves, most, norm, foreach=True)
        else:
            norm = torch.nn.utils.clip_grad_norm_(leaves, most, foreach=True)
        norms.append(float(norm))
    return norms


def _owners(state: TrainState) -> Sequence[int]:
    """Return the rank that keeps each leaf of the learner; empty where every rank keeps all."""
    if not isinstance(state.optimizer, Sharded):
        return ()
    return state.optimizer.owners([*state.learner.named_parameters().values()])


def _apply(
    state: TrainState, settings: UpdateSettings, norms: Sequence[float], *, finite: bool
) -> Metrics:
    """Guard and step; return `grad_norm`, `learning_rate` and `skipped_updates`."""
    optim = settings.optim
    rate = learning_rate(optim, update=state.updates, total_updates=settings.total_updates)
    if finite:
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.updates += 1
    state.skipped_in_row = 0 if finite else state.skipped_in_row + 1
    if state.skipped_in_row >= optim.max_skipped_updates:
        raise NonFiniteGradients(
            f"loss or gradient was not finite in {state.skipped_in_row} updates in a row "
            "(optim.max_skipped_updates); lower optim.learning_rate or check the rewards"
        )
    metrics = {"learning_rate": rate, "skipped_updates": float(not finite), "grad_norm": norms[0]}
    return metrics | {f"grad_norm/critic_{i}": norm for i, norm in enumerate(norms[1:])}
