"""Between a run's state and its checkpoint: what is saved, and how it is put back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from rlkit.training import checkpoint
from rlkit.training.checkpoint import Checkpoint, RunProgress
from rlkit.training.optim import state_tensors
from rlkit.training.update import TrainState


def checkpoint_of(state: TrainState, *, config_hash: str) -> Checkpoint:
    """Return what a resumed run needs of `state`, which must be between two steps."""
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
    moments = state_tensors(state.optimizer, parameters)
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
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(saved.parameters[name])
    checkpoint.restore_moments(state.optimizer, leaves, saved.moments)
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
