"""Between a run's state and its checkpoint: what is saved, and how it is put back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rlkit.ranks import ALONE, Ranks
from rlkit.training import checkpoint
from rlkit.training.checkpoint import Checkpoint, RunProgress
from rlkit.training.optim import state_tensors
from rlkit.training.sharded import Sharded
from rlkit.training.update import TrainState


def checkpoint_of(state: TrainState, *, config_hash: str, ranks: Ranks = ALONE) -> Checkpoint:
    """Return what a resumed run needs of `state`, which must be between two steps.

    All `ranks` must ask where the moments are spread; the first one gets the whole checkpoint.
    """
    parameters = state.learner.named_parameters()
    progress = RunProgress(
        step=state.step,
        updates=state.updates,
        skipped_in_row=state.skipped_in_row,
        no_reward_in_row=state.no_reward_in_row,
        no_signal_in_row=state.no_signal_in_row,
        config_hash=config_hash,
        samples=state.samples,
        train_seconds=state.train_seconds,
        loss_scale=state.loss_scale,
        microbatch_divisor=state.microbatch_divisor,
        success=state.success,
    )
    moments = _whole_moments(state.optimizer, parameters, ranks)
    parameters = _whole_parameters(state.optimizer, parameters, ranks)
    return Checkpoint(parameters=parameters, moments=moments, progress=progress)


def restore(state: TrainState, saved: Checkpoint) -> TrainState:
    """Put a checkpoint into a fresh state, in place.

    Raises CheckpointError when names or shapes differ, before anything has changed.
    """
    leaves = state.learner.named_parameters()
    if leaves.keys() != saved.parameters.keys():
        odd = sorted(leaves.keys() ^ saved.parameters.keys())
        raise checkpoint.CheckpointError(f"checkpoint and model differ in parameters: {odd[0]}")
    for name, leaf in leaves.items():
        if leaf.shape != (found := saved.parameters[name]).shape:
            raise checkpoint.CheckpointError(
                f"checkpoint and model differ in the shape of {name}: "
                f"{tuple(found.shape)} and {tuple(leaf.shape)}"
            )
    if isinstance(state.optimizer, Sharded):
        state.optimizer.put(saved.parameters)
    else:
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(saved.parameters[name])
    optimizer, own = _own_part(state.optimizer, leaves)
    foreign = leaves.keys() - own.keys()
    moments = {k: v for k, v in saved.moments.items() if k.rpartition("/")[0] not in foreign}
    checkpoint.restore_moments(optimizer, own, moments)
    state.step = saved.progress.step
    state.updates = saved.progress.updates
    state.skipped_in_row = saved.progress.skipped_in_row
    state.no_reward_in_row = saved.progress.no_reward_in_row
    state.no_signal_in_row = saved.progress.no_signal_in_row
    state.samples = saved.progress.samples
    state.train_seconds = saved.progress.train_seconds
    state.loss_scale = saved.progress.loss_scale
    state.microbatch_divisor = saved.progress.microbatch_divisor
    state.success = dict(saved.progress.success)
    return state


def resumed(state: TrainState, run_dir: Path, *, warn: Callable[[str], None]) -> TrainState:
    """Return the newest checkpoint of the run folder, if there is one, put into `state`.

    Raises CheckpointError when there are some and all are damaged: step 0 would overwrite a record.
    """
    # To the host: beside the state that it replaces, all weights and moments might not fit.
    saved, problems = checkpoint.load_newest(run_dir / "checkpoints", device=torch.device("cpu"))
    for problem in problems:
        warn(f"{problem}; the checkpoint before it is used")
    if saved is None and problems:
        raise checkpoint.CheckpointError(problems[0])
    return state if saved is None else restore(state, saved)


def _own_part(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> tuple[torch.optim.Optimizer, dict[str, Tensor]]:
    """Return the optimiser that has moments, and the parameters that they belong to."""
    if not isinstance(optimizer, Sharded):
        return optimizer, dict(parameters)
    own = {name: leaf for name, leaf in parameters.items() if optimizer.is_own(leaf)}
    return optimizer.own, own


def _whole_moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], ranks: Ranks
) -> dict[str, Tensor]:
    """Return the moments of all parameters, as `state_tensors` does; all ranks must ask.

    Args:
        optimizer: The run's.
        parameters: All parameters by name.
        ranks: The ranks of the run.

    Returns:
        On the first rank the moments, on the host where they are spread; on others nothing of use.
    """
    if not isinstance(optimizer, Sharded):
        return state_tensors(optimizer, parameters)
    return _gathered(state_tensors(*_own_part(optimizer, parameters)), parameters, ranks)


def _whole_parameters(
    optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor], ranks: Ranks
) -> dict[str, Tensor]:
    """Return all parameters on the first rank, as `_whole_moments` does with their moments."""
    if not (isinstance(optimizer, Sharded) and optimizer.is_spread()):
        return parameters
    found = _gathered(_own_part(optimizer, parameters)[1], parameters, ranks)
    return {name: found[name] for name in parameters} if found else {}


def _gathered(
    own: Mapping[str, Tensor], parameters: Mapping[str, Tensor], ranks: Ranks
) -> dict[str, Tensor]:
    """Return the tensors of all ranks by name, on the first rank and on the host; all must ask."""
    shapes = [(name, str(t.dtype)[6:], list(t.shape)) for name, t in own.items()]
    device = next(iter(parameters.values())).device
    found: dict[str, Tensor] = {}
    for owner, part in enumerate(ranks.share(lambda: json.dumps(shapes).encode())):
        for name, dtype, shape in json.loads(part):
            tensor = torch.zeros(shape, dtype=getattr(torch, dtype), device=device)
            if name in own:
                tensor.copy_(own[name].detach())
            ranks.copy_from([owner], [tensor])
            if ranks.rank == 0:
                found[name] = tensor.cpu()
    return found
