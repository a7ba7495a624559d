"""The work of `rlkit check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from rlkit.assembly.device import resolve_device
from rlkit.assembly.load import choose_generator
from rlkit.config import Config, DeviceChoice, algorithm_of
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.plan.choose import DoesNotFit, make_plan
from rlkit.plan.headline import ROWS
from rlkit.plan.of_config import planned
from rlkit.plan.parts import GB
from rlkit.plan.run import place
from rlkit.plan.table import lines


def plan_lines(arguments: Sequence[str]) -> Iterator[str]:
    """The plan of the run that `arguments` stand for; raises DoesNotFit or ConfigError."""
    register()
    (config, *others) = preflight(arguments)
    if others:
        raise ValueError("rlkit check takes one run, not a sweep")
    device, budget = _device(config)
    config = replace(config, generator=choose_generator(config, device, say=lambda _: None))
    made = planned(config, algorithm_of(config), device=device, budget=budget, say=print)
    yield from lines(made.plan, where=place(config, device))


def _device(config: Config) -> tuple[torch.device, int | None]:
    """Where to plan for; with `memory.budget` and no GPU here, a card of that size."""
    budget = config.memory.budget_bytes
    wants_card = config.device is not DeviceChoice.cpu and budget is not None
    if wants_card and not torch.cuda.is_available():
        return torch.device("cuda"), budget
    return resolve_device(config.device), None


def headline_table() -> Iterator[str]:
    """The models of docs/memory.md: claimed elsewhere, to reach, planned."""
    yield f"{'work':<44}  claimed  to reach   planned  decisions"
    for row in ROWS:
        budget = int(row.target * GB)
        try:
            plan = make_plan(row.work(), row.request(), budget=budget)
        except DoesNotFit as error:
            yield f"{row.name:<44}  {row.claimed:7.1f}  {row.target:8.1f}         -  {error}"
            continue
        choice = plan.choice
        yield (
            f"{row.name:<44}  {row.claimed:7.1f}  {row.target:8.1f}  {plan.peak / GB:8.2f}  "
            f"{choice.tokens_per_microbatch} tokens, {choice.checkpointing.value}, "
            f"{choice.at_once} at once, {choice.engine_tokens} tokens an engine step"
            f"{', CUDA graphs' if choice.graphs else ''}"
        )
