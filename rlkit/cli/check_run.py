"""This module does the work of `rlkit check`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import torch

from rlkit.assembly.assemble import assemble
from rlkit.assembly.device import resolve_device
from rlkit.assembly.init_from import started
from rlkit.assembly.lengths import longest_prompt
from rlkit.assembly.load import choose_generator
from rlkit.assembly.rows import usable_rows
from rlkit.assembly.without_weights import look_without_weights
from rlkit.config import Config, DeviceChoice, algorithm_of
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.launch.prepare import is_tabular
from rlkit.models.resolved import resolve_model
from rlkit.plan.choose import DoesNotFit, make_plan
from rlkit.plan.headline import ROWS
from rlkit.plan.of_config import planned
from rlkit.plan.parts import GB
from rlkit.plan.run import place
from rlkit.plan.table import lines
from rlkit.tasks import build_task, with_environment
from rlkit.training.no_signal import what_the_base_model_earns


def plan_lines(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the plan of the run that `arguments` stand for, then how its rows and rewards look.

    Raises DoesNotFit, ConfigError or ValueError, each with one line.
    """
    register()
    (config, *others) = preflight(arguments)
    if others:
        raise ValueError("rlkit check takes one run, not a sweep")
    if is_tabular(config):
        raise ValueError("rlkit check takes a language model, got model=tabular, which needs none")
    config = started(config, say=print)
    device, budget = _device(config)
    config = replace(config, generator=choose_generator(config, device, say=lambda _: None))
    model = resolve_model(config.model, device=device, say=print)
    said: list[str] = []
    rows = usable_rows(
        config,
        with_environment(build_task(config.task), config.environment),
        model.tokenizer,
        say=said.append,
    )
    made = planned(
        config,
        algorithm_of(config),
        model=model,
        budget=budget,
        longest_prompt=longest_prompt(config, rows, model),
    )
    yield from lines(made.plan, where=place(config, device))
    look_without_weights(config, rows.task, model, say=said.append)
    yield from said


def sample_lines(arguments: Sequence[str], count: int) -> Iterator[str]:
    """Yield what `count` samples of the base model earn; loads the model and starts the rewards."""
    (config,) = preflight(arguments)
    config = started(config, say=lambda _: None)
    with closing(assemble(config, say=lambda _: None)) as run:
        groups = run.base_samples(count)
    samples = [sample for group in groups for sample in group]
    rewards = [sample.reward for sample in samples]
    judged = [reward for reward in rewards if not math.isnan(reward)]
    above = sum(reward > 0.0 for reward in judged)
    text = f"rewards of {len(rewards)} samples of the base model: {above} above 0"
    if judged:
        text += f", mean {sum(judged) / len(judged):.3f}, from {min(judged):g} to {max(judged):g}"
    if len(judged) < len(rewards):
        text += f"; {len(rewards) - len(judged)} got none"
    yield text
    yield f"the first of them: {samples[0].text!r}"
    said = what_the_base_model_earns(rewards)
    if said is not None:
        yield f"warning: {said}"


def _device(config: Config) -> tuple[torch.device, int | None]:
    """Return where to plan for; with `memory.budget` and no GPU here, a card of that size."""
    budget = config.memory.budget_bytes
    wants_card = config.device is not DeviceChoice.cpu and budget is not None
    if wants_card and not torch.cuda.is_available():
        return torch.device("cuda"), budget
    return resolve_device(config.device), None


def headline_table() -> Iterator[str]:
    """Yield the models of docs/memory/plan.md: claimed elsewhere, to reach, planned."""
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
