"""This module draws the still figures of `docs/objective.md`, for readers without JavaScript."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.resources import files
from xml.sax.saxutils import escape

from rlkit.oracle.explore import Numbers

_LEFT, _BAR, _WIDTH = 250, 22, 760
_COLOURS = ("#0072b2", "#e69f00", "#009e73")
_KL = (
    ("k1 in the loss", "reverse k1 pathwise"),
    ("k3 in the loss (GRPO)", "reverse k3 pathwise"),
    ("k3 times the live ratio", "reverse k3 score_function"),
    ("k1 in the reward", "reverse k1 reward"),
    ("exact, reverse", "reverse exact pathwise"),
    ("exact, forward", "forward exact pathwise"),
    ("Unsloth's full reverse", "reverse unsloth_full_reverse pathwise"),
    ("Unsloth's forward", "forward unsloth_forward pathwise"),
)
_BETAS = (0.04, 0.4, 2.0)
_LOSSES = (
    ("k1 in the reward", "reverse k1 reward", "detach"),
    ("k3 in the loss (GRPO)", "reverse k3 pathwise", "detach"),
    ("k1 in the loss", "reverse k1 pathwise", "detach"),
    ("Unsloth's full reverse", "reverse unsloth_full_reverse pathwise", "detach"),
    ("Unsloth's forward", "forward unsloth_forward pathwise", "detach"),
    ("k3, ratio not detached", "reverse k3 pathwise", "no_detach"),
)
_RATIOS = ("no_clip", "token", "sequence", "cispo", "sapo", "no_detach")


def kl_figure(data: Numbers) -> str:
    """Return bars of the errors of some KL terms against three divergences, as SVG."""
    most, rows = 2.3, [(label, data["kl"]["tab on"][name]["errors"]) for label, name in _KL]
    names = ("reverse KL of completions", "reverse KL per token", "forward KL per token")
    parts = _keys(names)
    for place, (label, errors) in enumerate(rows):
        top = 54 + place * 76
        parts.append(_text(_LEFT - 12, top + 38, label, anchor="end"))
        for k, error in enumerate(errors):
            parts += _bar(top + k * _BAR, error, most=most, colour=_COLOURS[k])
    return _svg(54 + 76 * len(rows), parts, "Relative error of the expected gradient of KL terms")


def beta_figure(data: Numbers) -> str:
    """Return the angles between the step and the one that is wanted, at three strengths."""
    parts = _keys([f"beta {beta:g}" for beta in _BETAS])
    for place, (label, name, policy) in enumerate(_LOSSES):
        top = 54 + place * 76
        parts.append(_text(_LEFT - 12, top + 38, label, anchor="end"))
        for k, beta in enumerate(_BETAS):
            angle = _angle(data["beta"]["tab"], name, policy, beta)
            width = max(2.0, 440 * angle / 180)
            parts.append(_rect(_LEFT, top + k * _BAR, width, colour=_COLOURS[k]))
            parts.append(_text(_LEFT + width + 7, top + k * _BAR + 15, f"{angle:.0f}°"))
    title = "Angle between the step and the step that is wanted, by beta"
    return _svg(54 + 76 * len(_LOSSES), parts, title)


def _angle(found: Numbers, name: str, policy: str, beta: float) -> float:
    """Return degrees between the shipped gradient and that of -E[R] + beta KL of completions."""
    shipped = [
        p + beta * t for p, t in zip(found["policy"][policy], found["terms"][name], strict=True)
    ]
    wanted = [-1.0 + beta * found["wanted"][0], beta * found["wanted"][1], 0.0]
    cosine = sum(a * b for a, b in zip(shipped, wanted, strict=True))
    cosine /= math.hypot(*shipped) * math.hypot(*wanted)
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def ratio_figure(data: Numbers) -> str:
    """Return the errors of some ratios for fresh, older and old samples."""
    places = [data["drifts"].index(drift) for drift in (0.0, 0.8, 2.0)]
    parts = _keys(("fresh samples", "older (0.8)", "old (2.0)"))
    for place, name in enumerate(_RATIOS):
        top = 54 + place * 76
        parts.append(_text(_LEFT - 12, top + 38, f"ratio={name}", anchor="end"))
        for k, age in enumerate(places):
            error = data["ratio"]["tab"][name][age][0]
            parts += _bar(top + k * _BAR, error, most=2.3, colour=_COLOURS[k])
    return _svg(54 + 76 * len(_RATIOS), parts, "Relative error of ratios by the age of the samples")


def page(data: Numbers) -> str:
    """Return the interactive page with its numbers inside; it opens from the disk."""
    template = files("rlkit.oracle").joinpath("page", "explore.html").read_text(encoding="utf-8")
    # Markup inside a string would end the script element.
    return template.replace("DATA", json.dumps(data).replace("<", "\\u003c"), 1)


def _keys(names: Sequence[str]) -> list[str]:
    parts = []
    for k, name in enumerate(names):
        left = 20 + k * 245
        parts += [_rect(left, 12, 16, colour=_COLOURS[k]), _text(left + 24, 27, name)]
    return parts


def _bar(top: float, error: float, *, most: float, colour: str) -> list[str]:
    width = max(2.0, 440 * error / most)
    label = "exact" if error == 0 else f"{error:.2f}"
    return [_rect(_LEFT, top, width, colour=colour), _text(_LEFT + width + 7, top + 15, label)]


def _rect(left: float, top: float, width: float, *, colour: str) -> str:
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{_BAR - 3}" '
        f'fill="{colour}"/>'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: int, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="15" fill="#1a1c1f">'
        f"<title>{escape(title)}</title>"
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )
