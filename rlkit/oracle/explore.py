"""This module measures the numbers of the interactive figures of `docs/objective.md`.

They are the gradients of the shipped losses, enumerated, and truths that autograd takes of exact
sums. The figures compute nothing but sums of two gradients: see `page/explore.html`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlkit.algorithms import KLConfig, RatioConfig
from rlkit.algorithms.objective.kl import KLEstimator, KLGradient, KLPlacement
from rlkit.oracle import measure, targets
from rlkit.oracle.expectation import World, expected_value, moments, world
from rlkit.oracle.formulas import RATIO
from rlkit.types import KLDirection

DIGITS = 6
WORLDS = ("tab", "tied")
DRIFTS = tuple(round(0.2 * k, 1) for k in range(11))
"""Distances of the policy that sampled from the policy that learns."""
TARGETS = ("reverse_sequence", "reverse_token", "forward_token")
_PUBLISHED = (
    KLEstimator.unsloth_full_reverse,
    KLEstimator.unsloth_forward,
    KLEstimator.unsloth_log_weighted,
)

Numbers = dict[str, Any]


def combinations() -> Iterator[tuple[str, KLConfig | str]]:
    """Yield the name of each choice of the figures with its options, or why it is refused."""
    for direction in (KLDirection.reverse, KLDirection.forward):
        for estimator in KLEstimator:
            if estimator is KLEstimator.top_k:
                continue
            for how in (*KLGradient, KLPlacement.reward):
                name = f"{direction} {estimator} {how}"
                try:
                    yield name, _options(direction, estimator, how)
                except ValueError as error:
                    yield name, str(error)


def _options(
    direction: KLDirection, estimator: KLEstimator, how: KLGradient | KLPlacement
) -> KLConfig:
    if isinstance(how, KLPlacement):
        return KLConfig(direction=direction, estimator=estimator, placement=how, beta=1.0)
    return KLConfig(direction=direction, estimator=estimator, gradient=how, beta=1.0)


def data() -> Numbers:
    """Return all numbers of the figures, rounded to six digits."""
    choices = dict(combinations())
    return {
        "directions": [d.value for d in (KLDirection.reverse, KLDirection.forward)],
        "estimators": [e.value for e in KLEstimator if e is not KLEstimator.top_k],
        "gradients": [*(g.value for g in KLGradient), KLPlacement.reward.value],
        "published": [e.value for e in _PUBLISHED],
        "refused": {name: text for name, text in choices.items() if isinstance(text, str)},
        "targets": list(TARGETS),
        "kl": {
            f"{p} {policy}": kl_figure(world(parametrisation=p, on_policy=policy == "on"), choices)
            for p in WORLDS
            for policy in ("on", "off")
        },
        "beta": {p: beta_figure(world(parametrisation=p, on_policy=True), choices) for p in WORLDS},
        "ratio": {p: ratio_figure(p) for p in WORLDS},
        "drifts": list(DRIFTS),
    }


def kl_figure(w: World, choices: Mapping[str, KLConfig | str]) -> Numbers:
    """Return how far the gradient of each choice is from those of three divergences."""
    truths = _truths(w)
    norm = truths["reverse_sequence"].norm()
    found: Numbers = {}
    for name, cfg in choices.items():
        if isinstance(cfg, str):
            continue
        got, one = moments(_silent(w), _algorithm(cfg)), _algorithm(cfg)
        claim = targets.reverse_token if cfg.direction is KLDirection.reverse else None
        truth = (claim or targets.forward_token)(w)(w.table)
        bias = float(expected_value(_silent(w), one) / truth - 1) if cfg.in_loss else None
        found[name] = {
            "errors": [rounded(targets.relative_error(got.gradient, truths[t])) for t in TARGETS],
            "bias": None if bias is None else rounded(bias),
            "sd": rounded(float(got.deviation / norm)),
        }
    return found


def beta_figure(w: World, choices: Mapping[str, KLConfig | str]) -> Numbers:
    """Return each gradient in the plane of two: of the reward, and of the KL between completions.

    The first axis is the gradient of the expected reward, and lengths are in units of it. `rest`
    is the length of what lies outside the plane.
    """
    reward = targets.gradient(w, targets.expected_reward(w))
    truth = _truths(w)["reverse_sequence"]
    unit = reward.norm()
    first = reward / unit
    second = truth - (truth @ first) * first
    second = second / second.norm()

    def place(gradient: Tensor) -> list[float]:
        x, y = float(gradient @ first), float(gradient @ second)
        rest = (gradient - x * first - y * second).norm()
        return [rounded(v / float(unit)) for v in (x, y, float(rest))]

    return {
        "wanted": place(truth),
        "terms": {
            name: place(moments(_silent(w), _algorithm(cfg)).gradient)
            for name, cfg in choices.items()
            if isinstance(cfg, KLConfig)
        },
        "policy": {
            "detach": place(_policy_term(w, "on_policy")),
            "no_detach": place(_policy_term(w, "no_detach")),
        },
    }


def ratio_figure(parametrisation: str) -> dict[str, list[list[float]]]:
    """Return (error, cosine, sd) of each ratio for each drift of the policy that sampled."""
    found: dict[str, list[list[float]]] = {name: [] for name in RATIO}
    for drift in DRIFTS:
        on_policy = drift == 0.0
        w = world(parametrisation=parametrisation, on_policy=on_policy, drift=drift)
        for name, rows in found.items():
            row = measure.ratio_row(name, w, on_policy=on_policy)
            rows.append([rounded(value) for value in row])
    return found


def rounded(value: float) -> float:
    """Return six significant digits; 0.0 for what is zero to 1e-10."""
    return 0.0 if abs(value) < 1e-10 or math.isnan(value) else float(f"{value:.{DIGITS}g}")


def _truths(w: World) -> Mapping[str, Tensor]:
    claims: Sequence[Any] = [getattr(targets, name) for name in TARGETS]
    return {
        name: targets.gradient(w, claim(w)) for name, claim in zip(TARGETS, claims, strict=True)
    }


def _silent(w: World) -> World:
    """Return the world without rewards, so that a gradient is that of the KL alone."""
    return w._replace(rewards=torch.zeros_like(w.rewards), turn_rewards=None)


def _algorithm(cfg: KLConfig) -> Any:
    unclipped = measure.load("ratio", "no_clip", RatioConfig)
    return measure.algorithm(measure.raw_reward(), kl=cfg, ratio=unclipped, updates=2)


def _policy_term(w: World, name: str) -> Tensor:
    ratio = measure.load("ratio", name, RatioConfig)
    return moments(w, measure.algorithm(measure.raw_reward(), ratio=ratio)).gradient
