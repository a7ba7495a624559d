"""The gradient of several ranks against that of one, on the same rollouts, in the run's dtype.

torchrun starts it once a card; see `benchmarks.ranks`. All ranks sample one batch together. They
score it and compute its gradient by shares; then the first one does both alone, several times.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.step_sides import Work, rlkit_overrides
from benchmarks.timeline import Recorder
from rlkit.assembly.assemble import assemble
from rlkit.assembly.model_run import ModelRun
from rlkit.config import Config, load
from rlkit.launch.composing import register
from rlkit.launch.rank_place import leave
from rlkit.launch.ranks import meet
from rlkit.ranks import ALONE, Ranks
from rlkit.training.clock import StepClock
from rlkit.training.collate import collate
from rlkit.training.learner import Learner
from rlkit.training.score import score
from rlkit.training.stopping import StopRequest
from rlkit.training.update import UpdateSettings, accumulate, train_step
from rlkit.types import Algorithm, RolloutBatch, TrainBatch

_UPDATES = 2
"""Updates before the comparison: a fresh adapter's factor B is zero, and so is A's gradient."""


def main() -> int:
    """Compare, and write the numbers as the first rank."""
    parser = argparse.ArgumentParser(prog="torchrun -m benchmarks.ranks_gradient")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", required=True, help="a Work, as JSON")
    options = parser.parse_args()
    fields = json.loads(options.work)
    folder, overrides = Path(fields.pop("folder")), tuple(fields.pop("overrides"))
    config = _config(Work(folder=folder, overrides=overrides, **fields))
    ranks = meet(config)
    say = print if ranks.rank == 0 else _say_nothing
    with closing(assemble(config, say=say, ranks=ranks)) as run:
        found = _compared(run, ranks, Path(config.run_dir))
        if ranks.rank == 0:
            options.out.write_text(json.dumps(found))
            print(json.dumps(found), flush=True)
        ranks.together(lambda: None)
    ranks.close()
    leave(0)


def _config(work: Work) -> Config:
    from hydra import compose, initialize_config_module

    register()
    with initialize_config_module("rlkit.conf", version_base="1.3"):
        overrides = rlkit_overrides(work, work.folder / work.run_name)
        return load(compose("config", overrides=overrides))


def _say_nothing(_line: str) -> None:
    """Leave it to the first rank."""


def _compared(run: ModelRun, ranks: Ranks, run_dir: Path) -> dict[str, object]:
    state, stop = run.initial_state(), StopRequest()
    trainer = run.trainer(Recorder(), stop, run_dir=run_dir)
    for step in range(_UPDATES + 1):
        trainer.generator.load_adapter(state.learner.adapter, state.updates)
        clock = StepClock(run.device)
        groups = trainer.collector.collect(step, policy_version=state.updates, clock=clock).groups
        batch = collate(
            groups,
            reward_weights=trainer.collector.rewards.weights,
            pad_token_id=trainer.pad_token_id,
            device=run.device,
        )
        algorithm, settings = trainer.algorithm(step), trainer.settings
        scored = score(state.learner, batch, algorithm, settings)
        if step < _UPDATES:
            train_step(state, algorithm.prepare(scored), algorithm, settings)
    several = _gradient(state.learner, scored, algorithm, settings)
    tokens = settings.tokens_per_microbatch
    found: dict[str, object] = {
        "ranks": ranks.size,
        "rows": len(batch),
        "tokens_per_microbatch": tokens,
        "dtype": str(run.base.dtype),
        "norm": float(several.double().norm()),
    }
    ranks.together(lambda: None)
    if ranks.rank != 0:
        return found
    alone = settings._replace(ranks=ALONE)
    finer = alone._replace(tokens_per_microbatch=max(tokens // 2, 1))
    one = _gradient(state.learner, scored, algorithm, alone)
    rescored = score(state.learner, batch, algorithm, alone)
    return found | {
        "several against one": difference(several, one),
        "one against itself": difference(_gradient(state.learner, scored, algorithm, alone), one),
        "one in halves against one": difference(
            _gradient(state.learner, scored, algorithm, finer), one
        ),
        "with scores of their own": difference(
            several, _gradient(state.learner, rescored, algorithm, alone)
        ),
        "largest difference of a ref_logp": _largest(scored.ref_logps, rescored.ref_logps),
    }


def _gradient(
    learner: Learner, batch: RolloutBatch, algorithm: Algorithm, settings: UpdateSettings
) -> Tensor:
    """Return the whole gradient of a batch as one vector."""
    leaves = learner.named_parameters()
    for leaf in leaves.values():
        leaf.grad = None
    prepared: TrainBatch = algorithm.prepare(batch)
    accumulate(learner, prepared, algorithm, settings)
    return torch.cat([_grad(leaf) for leaf in leaves.values()])


def _grad(leaf: Tensor) -> Tensor:
    found = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return found.detach().reshape(-1).float().clone()


def difference(a: Tensor, b: Tensor) -> Mapping[str, float]:
    """Return how far two gradients are apart.

    Returns:
        `cosine`; `relative_norm`, the norm of the difference over that of `b`; `largest`, the
        largest difference of an element over the largest element of `b`.
    """
    x, y = a.double(), b.double()
    apart = x - y
    return {
        "cosine": float(x @ y / (x.norm() * y.norm())),
        "one_minus_cosine": float(1.0 - x @ y / (x.norm() * y.norm())),
        "relative_norm": float(apart.norm() / y.norm()),
        "largest": float(apart.abs().max() / y.abs().max()),
    }


def _largest(a: Tensor | None, b: Tensor | None) -> float:
    return 0.0 if a is None or b is None else float((a - b).abs().max())


if __name__ == "__main__":
    sys.exit(main())
