"""This module writes the section of `docs/objective.md` about episodes of several turns."""

from __future__ import annotations

import math

from rlkit.algorithms.objective.advantage import Baseline, Scale, TurnCredit
from rlkit.oracle import measure
from rlkit.oracle.episodes import episode_world
from rlkit.oracle.expectation import World
from rlkit.oracle.formulas import KL, RATIO, TURN_NOTES
from rlkit.oracle.markdown import both, number, table
from rlkit.oracle.measure import PARAMETRISATIONS

_COMPARED = (
    (Baseline.none, Scale.none),
    (Baseline.leave_one_out, Scale.none),
    (Baseline.group_mean, Scale.none),
    (Baseline.group_mean, Scale.group_std),
)


def turn_sections() -> list[str]:
    """Return the tables, with what they say in words."""
    return [
        TURN_NOTES["world"],
        credit_table(),
        TURN_NOTES["credit"],
        kl_table(),
        TURN_NOTES["kl"],
        ratio_table(),
        TURN_NOTES["ratio"],
    ]


def credit_table() -> str:
    """Return how far each way to credit turns is from the policy gradient."""
    rows = []
    for group_size in (2, 3):
        for turns in TurnCredit:
            for baseline, scale in _COMPARED:
                if turns in (TurnCredit.centred_to_go, TurnCredit.own_turn) and scale is not (
                    Scale.none
                ):
                    continue
                rows.append(_credit_cells(group_size, turns, baseline, scale))
    return table(["G", "turns=", "baseline", "scale", "error", "cosine", "sd"], rows)


def _credit_cells(
    group_size: int, turns: TurnCredit, baseline: Baseline, scale: Scale
) -> list[str]:
    got = {
        p: measure.group_row(
            _world(p, group_size), group_size, baseline=baseline, scale=scale, turns=turns
        )
        for p in PARAMETRISATIONS
    }
    spread = {
        p: measure.group_deviation(
            _world(p, group_size), group_size, baseline=baseline, scale=scale, turns=turns
        )
        if group_size == 2
        else math.nan
        for p in PARAMETRISATIONS
    }
    return [
        str(group_size),
        f"`{turns}`",
        baseline,
        scale,
        both({p: number(got[p].error) for p in got}),
        both({p: number(got[p].cosine) for p in got}),
        both({p: number(spread[p]) for p in got}),
    ]


def _world(parametrisation: str, group_size: int) -> World:
    """Return three turns for pairs; two for groups of three, of which there are many."""
    turns = 3 if group_size == 2 else 2
    return episode_world(parametrisation=parametrisation, on_policy=True, words=1, turns=turns)


def kl_table() -> str:
    """Return the bias of every option of the kl group where an environment takes part."""
    worlds = {p: episode_world(parametrisation=p, on_policy=True) for p in PARAMETRISATIONS}
    rows = []
    for name in KL:
        if name == "none":
            continue
        cells = {p: measure.kl_row(name, w, on_policy=True) for p, w in worlds.items()}
        errors = [both({p: number(cells[p].errors[k]) for p in cells}) for k in range(3)]
        rows.append([f"`{name}`", both({p: number(cells[p].value_bias) for p in cells}), *errors])
    columns = ["reverse, episodes", "reverse, tokens", "forward, tokens"]
    return table(["kl=", "value bias", *columns], rows)


def ratio_table() -> str:
    """Return the bias of every option of the ratio group where an environment takes part."""
    rows = []
    for name in RATIO:
        cells = []
        for on_policy in (True, False):
            got = {
                p: measure.ratio_row(
                    name,
                    episode_world(parametrisation=p, on_policy=on_policy),
                    on_policy=on_policy,
                )
                for p in PARAMETRISATIONS
            }
            cells += [
                both({p: number(got[p].error) for p in got}),
                both({p: number(got[p].cosine) for p in got}),
            ]
        rows.append([f"`{name}`", *cells])
    columns = ["error", "cosine", "error off-policy", "cosine off-policy"]
    return table(["ratio=", *columns], rows)
