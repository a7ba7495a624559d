"""This module lists the choices that a plan has, the fastest by `rlkit.plan.cost` first."""

from __future__ import annotations

from itertools import product

from rlkit.kernels.workspace import WORKSPACE_BYTES
from rlkit.models.config import Checkpointing, Switch
from rlkit.plan.cost import enough_tokens, group_tokens, step_seconds
from rlkit.plan.parts import ENGINES, Choice, Request
from rlkit.plan.work import Work

_WORKSPACES = (WORKSPACE_BYTES, 2**28, 2**26)
_ENGINE_TOKENS = (8192, 2048, 1024)
"""Tokens of one engine step, which bound its activations: the more, the faster prompts are read."""
_PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Micro-batches that groups, or the units of one group, are shared out to."""


def candidates(work: Work, request: Request) -> list[Choice]:
    """Return every choice that `request` leaves; of equally fast ones the most generous first."""
    found = [
        Choice(size, mode, workspace, n, *engine)
        for n, engine, mode, size, workspace in product(
            _halves(min(work.rows_together, work.max_at_once), 1),
            _engine_choices(work, request),
            _modes(work, request),
            token_budgets(work, request),
            _WORKSPACES,
        )
    ]
    return sorted(found, key=lambda choice: step_seconds(work, choice))


def least_choice(work: Work, request: Request) -> Choice:
    """Return the choice that takes least: the smallest micro-batch, one completion at once."""
    engine = _engine_choices(work, request)[-1]
    mode, size = _modes(work, request)[-1], token_budgets(work, request)[-1]
    return Choice(size, mode, _WORKSPACES[-1], 1, *engine)


def token_budgets(work: Work, request: Request) -> list[int]:
    """Return bounds of a micro-batch, in tokens, the largest first; the last is the least.

    Left to the plan, they are whole groups, then whole rows of one, up to what keeps the device
    busy. Under a bound of the user's they are its halves.
    """
    everything = work.num_rows * work.row_tokens
    if request.tokens_per_microbatch == 0:
        return [everything]
    least = min(work.unit_tokens, everything)
    if request.tokens_per_microbatch is not None:
        most = min(max(request.tokens_per_microbatch, least), everything)
        return _halves(most, min(least, most))
    passes = 2 if work.critic else 1
    groups = {-(-work.num_prompts // n) for n in _PARTS} | {1}
    units = -(-work.group_size // work.rows_per_unit)
    sizes = {passes * count * group_tokens(work) for count in groups}
    sizes |= {work.unit_tokens * -(-units // n) for n in _PARTS[1:]}
    fitting = sorted({max(least, min(size, everything)) for size in sizes})
    enough = enough_tokens(work)
    useful = [n for i, n in enumerate(fitting) if i == 0 or fitting[i - 1] < enough]
    return useful[::-1]


def _modes(work: Work, request: Request) -> list[Checkpointing]:
    modes = [request.checkpointing]
    if request.checkpointing is Checkpointing.auto:
        modes = [Checkpointing.off, Checkpointing.on, Checkpointing.offload]
    if not work.on_cuda:
        modes = [m for m in modes if m is not Checkpointing.offload] or [Checkpointing.on]
    return modes


def _engine_choices(work: Work, request: Request) -> list[tuple[int, bool]]:
    """Return tokens of a step and whether by CUDA graphs, the fastest first."""
    if work.sampler not in ENGINES:
        return [(0, False)]
    everything = work.rows_together * work.row_tokens
    usual = _ENGINE_TOKENS if work.on_cuda else _ENGINE_TOKENS[1:2]
    sizes = [request.engine_tokens] if request.engine_tokens else list(usual)
    sizes = [n for n in sizes if n < everything] or sizes[-1:]
    graphs = {Switch.on: [True], Switch.off: [False], Switch.auto: [True, False]}[request.graphs]
    if not work.on_cuda:
        graphs = [False]
    return [(n, by_graphs) for by_graphs in graphs for n in sizes]


def _halves(most: int, least: int) -> list[int]:
    """Return most, most / 2, ... down to `least`, which comes last."""
    values = [most]
    while values[-1] // 2 > least:
        values.append(values[-1] // 2)
    return values if values[-1] == least else [*values, least]
