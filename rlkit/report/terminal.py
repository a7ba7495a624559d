"""This module prints the results of a study on a terminal."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlkit.report.differences import Differences, differences
from rlkit.report.job import JobRecord, prompt_keys
from rlkit.report.load import StudyKind
from rlkit.report.measure import SUCCESS
from rlkit.report.results import Results
from rlkit.report.rows import VariantRow
from rlkit.report.text import NONE, fixed, p_value, short, with_range
from rlkit.report.verdict import headline
from rlkit.stats import Estimate, Verdict
from rlkit.tracking.base import Measure
from rlkit.tracking.columns import seconds
from rlkit.tracking.intervals import change_between_runs
from rlkit.tracking.summary import printable

_STYLES = {Verdict.above: "bold green", Verdict.below: "bold red", Verdict.similar: "bold"}
_MAX_OPTIONS = 20
_WIDEST = 1000
_HIGH = {
    "seeds": 5, "before": 6, "after": 14, "difference": 16, "p": 7, "verdict": 13,
    "KL": 6, "time": 6,
}  # fmt: skip
"""Columns of the table that 80 columns hold, and how wide they are."""


def print_results(console: Console, results: Results) -> None:
    """Print the headline, a table for each panel, the options that differ, and unfinished jobs.

    A terminal that is too narrow for the tables gets them two lines high, with the name of each
    variant above its numbers.
    """
    console.print(Text(printable(headline(results)), style="bold"), soft_wrap=True)
    panels = results.panels.items()
    tables = [_table(results, panel, rows) for panel, rows in panels]
    anything = console.options.update(width=_WIDEST, max_width=_WIDEST)
    width = max((console.measure(t, options=anything).maximum for t in tables), default=0)
    if console.is_terminal and width > console.width:
        for panel, rows in panels:
            _print_high(console, results, panel, rows)
    else:
        console.width = max(width, console.width)  # a pipe has none of its own
        for table in tables:
            console.print(table)
    _print_prompts(console, results)
    _print_options(console, results)
    for job in results.study.jobs:
        if not job.done:
            text = f"{job.id} {job.state.value} {job.message}".rstrip()
            console.print(Text(printable(text)), style="yellow", highlight=False)


def _table(results: Results, panel: str, rows: list[VariantRow]) -> Table:
    table = Table(title=Text(panel) if panel else None, title_justify="left")
    table.add_column("variant", overflow="fold")
    for name in ("seeds", "before", results.metric_label, f"vs {results.baseline}"):
        table.add_column(Text(name), justify="right")
    table.add_column("p")
    table.add_column(f"verdict (±{results.margin:g})")
    for name in ("KL", "time"):
        table.add_column(name, justify="right")
    for row in rows:
        comparison = row.comparison
        table.add_row(
            Text(printable(row.arm.variant)),
            f"{len(row.values)}/{len(row.arm.jobs)}",
            fixed(row.start),
            Text(with_range(row.final)),
            Text(with_range(comparison.difference if comparison else None, sign="+")),
            p_value(comparison.p_different if comparison else None),
            _verdict(row),
            Text(with_range(row.kl)),
            _time(row),
        )
    return table


def _print_high(console: Console, results: Results, panel: str, rows: list[VariantRow]) -> None:
    """Print the table of a panel for 80 columns: intervals below their means, none for the KL."""
    against = f"differences from {results.baseline}, similar within ±{results.margin:g}"
    title = f"{panel}: " if panel else ""
    console.print(Text(f"{title}{results.metric_label}, {against}"), style="italic")
    console.print(_cells(*(Text(name, style="bold") for name in _HIGH)))
    for row in rows:
        comparison = row.comparison
        found = comparison.difference if comparison else None
        console.print(Text(printable(row.arm.variant), style="bold"))
        console.print(
            _cells(
                f"{len(row.values)}/{len(row.arm.jobs)}",
                fixed(row.start),
                Text(with_range(row.final).replace(" ", "\n", 1)),
                Text(with_range(found, sign="+").replace(" ", "\n", 1)),
                p_value(comparison.p_different if comparison else None),
                _verdict(row),
                _short(row.kl),
                _time(row),
            )
        )


def _cells(*cells: Text | str) -> Table:
    """Return one row of the high table, with columns like those of the others."""
    line = Table.grid(padding=(0, 1, 0, 0))
    for name, width in _HIGH.items():
        line.add_column(width=width, justify="left" if name == "verdict" else "right")
    line.add_row(*cells)
    return line


def _verdict(row: VariantRow) -> Text:
    if row.comparison is None:
        return Text("baseline" if row.is_baseline else "–", style="dim")
    word = row.comparison.verdict
    return Text(word.value, style=_STYLES.get(word, "dim"))


def _print_prompts(console: Console, results: Results) -> None:
    """Print intervals over shared prompts where a side has one seed, so no interval over seeds."""
    arms = [row.arm for row in results.rows]
    alone = [next(iter(arm.done.values())) for arm in arms if len(arm.done) == 1]
    if results.metric != SUCCESS or len(alone) < 2 or len(alone) != len(arms):
        return
    first = alone[0]
    for arm, job in zip(arms[1:], alone[1:], strict=True):
        if not first.evals or not job.evals:
            continue
        if first.evals[-1].samples_per_prompt == 0:
            continue
        console.print(Text(f"{printable(arm.variant)}: {_over_prompts(first, job)}"))


def _over_prompts(first: JobRecord, job: JobRecord) -> str:
    """Return the difference of two runs over the prompts whose content they share, if any."""
    one, other = first.evals[-1], job.evals[-1]
    if one.measure is other.measure is Measure.reward and _rewards(first) != _rewards(job):
        return "its reward functions are others, so that the two rewards cannot be compared"
    keys, other_keys = prompt_keys(first, job)
    shared = change_between_runs(one, other, keys=keys, other_keys=other_keys)
    if shared is None:
        if one.measure is not other.measure:
            return f"one run measures {one.measure.value}, the other {other.measure.value}"
        return "no held-out prompt that both runs have judged is known, so none can be paired"
    found, count = shared.difference, shared.num_prompts
    return (
        f"{fixed(found.mean, sign='+')} [{fixed(found.low, sign='+')}, "
        f"{fixed(found.high, sign='+')}] over the held-out prompts both share, {count} of "
        f"them; of these two runs only, it says nothing about other seeds"
    )


def _rewards(job: JobRecord) -> dict[str, object]:
    """Return the options of the reward functions, weights included."""
    return {k: value for k, value in job.config.items() if k.startswith("reward.functions.")}


def _print_options(console: Console, results: Results) -> None:
    found = differences([row.arm for row in results.rows], baseline=results.baseline)
    if not found.keys:
        return
    if results.study.kind is StudyKind.sweep or len(found.rows) > 4:
        return  # the names of the variants say it
    console.print(_options_table(found))
    if len(found.keys) > _MAX_OPTIONS:
        console.print(f"and {len(found.keys) - _MAX_OPTIONS} more options that differ")


def _options_table(found: Differences) -> Table:
    table = Table(title="options that differ", title_justify="left")
    table.add_column("")
    for arm, _ in found.rows:
        table.add_column(Text(printable(arm.variant)), overflow="fold")
    for index, key in enumerate(found.keys[:_MAX_OPTIONS]):
        cells = [cells[index] for _, cells in found.rows]
        shown = [Text(printable(c.text), style="bold" if c.differs else "") for c in cells]
        table.add_row(Text(key), *shown)
    return table


def _short(found: Estimate | None) -> str:
    """Return a mean in six characters."""
    if found is None:
        return NONE
    return short(found.mean) if found.mean < 100 else fixed(found.mean, digits=1)


def _time(row: VariantRow) -> str:
    spent = [
        float(job.steps["seconds"][-1])
        for job in row.arm.done.values()
        if len(job.steps.get("seconds", ()))
    ]
    return seconds(math.fsum(spent) / len(spent)) if spent else "–"
