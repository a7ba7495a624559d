"""The results of a study on a terminal."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlkit.report.differences import Differences, differences
from rlkit.report.load import Kind
from rlkit.report.measure import SUCCESS
from rlkit.report.results import Results
from rlkit.report.rows import Row
from rlkit.report.text import fixed, p_value, with_range
from rlkit.report.verdict import headline
from rlkit.stats import Verdict
from rlkit.tracking.columns import seconds
from rlkit.tracking.intervals import change
from rlkit.tracking.summary import printable

_STYLES = {Verdict.above: "bold green", Verdict.below: "bold red", Verdict.similar: "bold"}
_MAX_OPTIONS = 20


def print_results(console: Console, results: Results) -> None:
    """The headline, a table for each panel, the options that differ, what is not completed."""
    console.print(Text(printable(headline(results)), style="bold"))
    for panel, rows in results.panels.items():
        console.print(_table(results, panel, rows))
    _print_prompts(console, results)
    _print_options(console, results)
    for job in results.study.jobs:
        if not job.done:
            text = f"{job.id} {job.state.value} {job.message}".rstrip()
            console.print(Text(printable(text)), style="yellow", highlight=False)


def _table(results: Results, panel: str, rows: list[Row]) -> Table:
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
        verdict = Text("baseline" if row.is_baseline else "–", style="dim")
        if comparison is not None:
            word = comparison.verdict
            verdict = Text(word.value, style=_STYLES.get(word, "dim"))
        table.add_row(
            Text(printable(row.arm.variant)),
            f"{len(row.values)}/{len(row.arm.jobs)}",
            fixed(row.start),
            Text(with_range(row.final)),
            Text(with_range(comparison.difference if comparison else None, sign="+")),
            p_value(comparison.p_different if comparison else None),
            verdict,
            Text(with_range(row.kl)),
            _time(row),
        )
    return table


def _print_prompts(console: Console, results: Results) -> None:
    """For one seed a side there is no interval over seeds; there is one over shared prompts."""
    arms = [row.arm for row in results.rows]
    alone = [next(iter(arm.done.values())) for arm in arms if len(arm.done) == 1]
    if results.metric != SUCCESS or len(alone) < 2 or len(alone) != len(arms):
        return
    first = alone[0]
    for arm, job in zip(arms[1:], alone[1:], strict=True):
        if not first.evals or not job.evals:
            continue
        found = change(first.evals[-1], job.evals[-1])
        if found is None or first.evals[-1].samples_per_prompt == 0:
            continue
        console.print(
            Text(
                f"{printable(arm.variant)}: {fixed(found.mean, sign='+')} "
                f"[{fixed(found.low, sign='+')}, {fixed(found.high, sign='+')}] over the held-out "
                f"prompts both share; of these two runs only, it says nothing about other seeds"
            )
        )


def _print_options(console: Console, results: Results) -> None:
    found = differences([row.arm for row in results.rows], baseline=results.baseline)
    if not found.keys:
        return
    if results.study.kind is Kind.sweep or len(found.rows) > 4:
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


def _time(row: Row) -> str:
    spent = [
        float(job.steps["seconds"][-1])
        for job in row.arm.done.values()
        if len(job.steps.get("seconds", ()))
    ]
    return seconds(math.fsum(spent) / len(spent)) if spent else "–"
