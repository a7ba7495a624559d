"""This module says what each column of the step table shows, and which of them fit a width."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rlkit.tracking.base import Phase, StepRecord

Metrics = Mapping[str, float]
_GAP = 2
_NAME_WIDTH = 12
_TIME = "time"
_SPLIT_TITLE = "generate/reward/score/update/sync"
_NONE = "–"
_SPLIT = (Phase.generate, Phase.reward, Phase.score, Phase.update, Phase.sync)


class TableColumn(NamedTuple):
    """A column has a `rank`, which says how long it stays on a narrow terminal.

    Rank 0 is dropped last.
    """

    title: str
    width: int
    rank: int
    cell: Callable[[StepRecord], str]


def columns(reward_names: Sequence[str], *, signal: str = "reward") -> list[TableColumn]:
    """Return all columns, left to right.

    With rewards there is none for the loss: near 0 by design, it says nothing.

    Args:
        reward_names: The reward functions, in order.
        signal: The metric of the second column, `reward` or `loss`.

    Returns:
        The columns.
    """
    of_rewards = signal == "reward"
    rewards = [
        *(_reward_column(name) for name in reward_names),
        TableColumn("std", 5, 3, lambda r: fixed(r.metrics.get("reward_std"), digits=2)),
        TableColumn("KL", 7, 2, lambda r: small(r.metrics.get("kl"))),
    ]
    no_std = TableColumn("no-std", 6, 4, lambda r: percent(r.metrics.get("frac_reward_zero_std")))
    return [
        TableColumn("step", 4, 0, lambda r: str(r.step)),
        TableColumn(signal, 6, 0, lambda r: fixed(r.metrics.get(signal))),
        *(rewards if of_rewards else []),
        TableColumn("length", 6, 1, lambda r: fixed(_length(r.metrics), digits=1)),
        *([no_std] if of_rewards else []),
        TableColumn("grad", 7, 5, lambda r: small(r.metrics.get("grad_norm"))),
        TableColumn("tok/s", 6, 6, lambda r: count(r.metrics.get("speed/tokens_per_second"))),
        TableColumn(_TIME, 6, 8, lambda r: seconds(r.metrics.get("time/step"))),
        TableColumn(_SPLIT_TITLE, 33, 9, lambda r: split(r.metrics)),
        TableColumn("memory", 7, 10, lambda r: memory(r.metrics)),
    ]


def fit(candidates: Sequence[TableColumn], width: int) -> list[TableColumn]:
    """Return the columns that fit `width` characters: the highest rank is dropped first."""
    kept = list(candidates)
    while len(kept) > 2 and sum(c.width + _GAP for c in kept) - _GAP > width:
        kept.remove(max(reversed(kept), key=lambda c: c.rank))
    return kept


def header_line(shown: Sequence[TableColumn]) -> str:
    """Return titles, right-aligned over their columns."""
    return (" " * _GAP).join(c.title.rjust(c.width) for c in shown)


def record_line(shown: Sequence[TableColumn], record: StepRecord) -> str:
    """Return the cells of one step, right-aligned."""
    return (" " * _GAP).join(c.cell(record).rjust(c.width) for c in shown)


def details(record: StepRecord, dropped: Sequence[TableColumn]) -> list[str]:
    """Return lines on one step: its time split, the learning signal and the `dropped` columns."""
    metrics = record.metrics
    shares = [
        f"{name.removeprefix('time/')} {percent(share)}"
        for name in (*(f"time/{phase.value}" for phase in Phase), "time/other")
        if (share := _share(metrics, name)) is not None
    ]
    values = {
        "signal": small(metrics.get("pg_signal")),
        "entropy": small(metrics.get("entropy")),
        "clipped": percent(metrics.get("clip_ratio/region_mean")),
        "cut": percent(metrics.get("completions/clipped_ratio")),
        "lr": small(metrics.get("learning_rate")),
        "memory": memory(metrics),
    }
    values |= {
        f"slot A of {key.split('/')[1]}": percent(share)
        for key, share in metrics.items()
        if key.endswith("/first_slot")
    }
    values |= {c.title: c.cell(record) for c in dropped if c.title not in (_TIME, _SPLIT_TITLE)}
    total = seconds(metrics.get("time/step"))
    parts = [f"{name} {value}" for name, value in values.items() if value != _NONE]
    return [
        *([f"time {total}: " + " · ".join(shares)] if shares else []),
        *([" · ".join(parts)] if parts else []),
    ]


def fixed(value: float | None, *, digits: int = 3) -> str:
    """Return a number with fixed digits; `–` when there is none, as for a missing reward."""
    if value is None or math.isnan(value):
        return _NONE
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.3g}"


def small(value: float | None) -> str:
    """Return a number of unknown magnitude in at most 7 characters."""
    if value is None:
        return _NONE
    if value == 0 or 0.001 <= abs(value) < 1000 or not math.isfinite(value):
        return f"{value:.3g}"
    return f"{value:.1e}" if value > 0 else f"{value:.0e}"


def count(value: float | None) -> str:
    """Return a count such as 812, 1.9k, 24k, 1.2M."""
    if value is None or not math.isfinite(value):
        return _NONE
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            scaled = value / limit
            return f"{scaled:.1f}{unit}" if scaled < 10 else f"{scaled:.0f}{unit}"
    return f"{value:.0f}"


def percent(value: float | None) -> str:
    """Return a share as whole percent."""
    return _NONE if value is None or not math.isfinite(value) else f"{100 * value:.0f}%"


def seconds(value: float | None) -> str:
    """Return a short duration: 0.34s, 12.3s, 3m05s, 2h10m."""
    if value is None or not math.isfinite(value):
        return _NONE
    if value < 60:
        return f"{value:.2f}s" if value < 1 else f"{value:.1f}s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def memory(metrics: Metrics) -> str:
    """Return the peak CUDA memory if there is any, else resident memory of the process."""
    value = metrics.get("memory/cuda_peak_bytes") or metrics.get("memory/rss_bytes")
    return _NONE if not value else f"{value / 2**30:.1f}GiB"


def split(metrics: Metrics) -> str:
    """Return percent of the step's time in generate/reward/score/update/sync."""
    shares = [_share(metrics, f"time/{phase.value}") for phase in _SPLIT]
    if all(share is None for share in shares):
        return _NONE
    return "/".join(_NONE if s is None else f"{100 * s:.0f}" for s in shares) + "%"


def _share(metrics: Metrics, name: str) -> float | None:
    total, part = metrics.get("time/step", 0.0), metrics.get(name)
    return None if part is None or not total else part / total


def _length(metrics: Metrics) -> float | None:
    return metrics.get("completions/mean_length")


def _reward_column(name: str) -> TableColumn:
    title = name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 1] + "…"
    metric = f"rewards/{name}/mean"
    return TableColumn(title, max(len(title), 5), 7, lambda r: fixed(r.metrics.get(metric)))
