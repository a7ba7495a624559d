"""This module ends a run on the console: results before and after, completions and files."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlkit.tracking.base import EvalRecord, Interval, Outcome, RunInfo, SampleRow, Status
from rlkit.tracking.columns import seconds
from rlkit.tracking.intervals import change

_BLOCKS = "▁▂▃▄▅▆▇█"
_NUM_EXAMPLES = 3
_MAX_LINES = 10
_MAX_CHARACTERS = 500
_PROMPT_CHARACTERS = 240
_STATUS_STYLES = {Status.completed: "bold green", Status.interrupted: "bold yellow"}


def print_summary(
    console: Console,
    info: RunInfo,
    outcome: Outcome,
    evals: Sequence[EvalRecord],
    watched: Sequence[float],
) -> None:
    """Print how the run ended, what it learnt and where its files are.

    Args:
        console: The terminal to print on.
        info: The facts about the run.
        outcome: The way it ended.
        evals: Its evaluations in order; may be empty.
        watched: `info.signal` of each step.
    """
    style = _STATUS_STYLES.get(outcome.status, "bold red")
    end = Text(f"{outcome.status.value} in {seconds(outcome.wall_seconds)}", style=style)
    if outcome.message:
        end.append(f": {printable(outcome.message)}", style="")
    console.print(end)
    if evals:
        console.print(result_table(evals[0], evals[-1]))
    if len(evals) > 1:
        for panel in examples(evals[0], evals[-1]):
            console.print(panel)
    if watched:
        console.print(sparkline(watched, width=min(60, console.width - 30), name=info.signal))
    files = [("report", "report.html"), ("curves", "curves.png"), ("run folder", "")]
    if outcome.status is Status.failed:
        files.insert(0, ("traceback", "log.txt"))
    for label, name in files:
        path = info.run_dir / name
        if path.exists():
            text = Text.assemble((f"{label:<11}", "bold"), printable(str(path)))
            console.print(text, soft_wrap=True, highlight=False)


def result_table(before: EvalRecord, after: EvalRecord) -> Table:
    """Return success or reward at the first and the last evaluation, and the change."""
    table = Table(title=_title(after), title_justify="left", title_style="bold")
    for name in ("", after.measure.value, "95% interval"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row(before.label, f"{before.interval.mean:.3f}", _range(before.interval))
    if after is not before:
        table.add_row(after.label, f"{after.interval.mean:.3f}", _range(after.interval))
        paired = change(before, after)
        if paired is not None:
            style = "bold green" if paired.low > 0 else "bold red" if paired.high < 0 else "bold"
            mean = Text(f"{paired.mean:+.3f}", style=style)
            table.add_row("change", mean, _range(paired, sign="+"))
    return table


def examples(before: EvalRecord, after: EvalRecord) -> list[Panel]:
    """Return the first three held-out prompts of both evaluations, not picked for their looks."""
    old, new = _first_samples(before), _first_samples(after)
    shared = [index for index in old if index in new][:_NUM_EXAMPLES]
    panels = []
    for index in shared:
        grid = Table(box=None, expand=True, pad_edge=False, padding=(0, 1))
        for record, row in ((before, old[index]), (after, new[index])):
            grid.add_column(_caption(record, row), ratio=1, header_style="bold", overflow="fold")
        grid.add_row(Text(clip(old[index].completion)), Text(clip(new[index].completion)))
        prompt = tail(old[index].prompt)
        layout = Table.grid(expand=True)
        layout.add_row(Text(prompt, style="dim"))
        layout.add_row(Text(""))
        layout.add_row(grid)
        title = f"held-out prompt {index}"
        panels.append(Panel(layout, title=title, title_align="left", border_style="dim"))
    return panels


def eval_line(record: EvalRecord) -> str:
    """Return one line on one evaluation."""
    return (
        f"evaluation {record.label}: {record.measure.value} {record.interval.mean:.3f} "
        f"{_range(record.interval)} on {len(record.prompt_indices)} held-out prompts"
        f"{_judged(record)}"
    )


def sparkline(values: Sequence[float], *, width: int, name: str = "reward") -> Text:
    """Return the metric `name` so far as a line of bars.

    It has at most `width` characters, each the mean of its share of the steps.
    """
    size = max(1, math.ceil(len(values) / max(width, 1)))
    chunks = [values[i : i + size] for i in range(0, len(values), size)]
    means = [_finite_mean(chunk) for chunk in chunks]
    known = [mean for mean in means if mean is not None]
    if not known:
        return Text(f"{name}  no finite value yet")
    low, high = min(known), max(known)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    bars = "".join(" " if m is None else _BLOCKS[round((m - low) * scale)] for m in means)
    return Text.assemble(
        (f"{name}  ", "bold"), (bars, "cyan"), f"  {known[0]:.3f} → {known[-1]:.3f}"
    )


def printable(text: str) -> str:
    """Return `text` with control characters as visible symbols, for they could steer a terminal."""
    return "".join(map(_visible, text.replace("\r\n", "\n")))


def clip(text: str) -> str:
    """Return at most 10 lines and 500 characters of a completion, and how much was left out."""
    if not text.strip():
        return f"(empty: {text!r})" if text else "(empty)"
    short = "\n".join(printable(text)[:_MAX_CHARACTERS].split("\n")[:_MAX_LINES])
    rest = len(text.replace("\r\n", "\n")) - len(short)
    return f"{short} … (+{rest} characters)" if rest > 0 else short


def tail(prompt: str) -> str:
    """Return the end of a prompt, where the question is."""
    text = printable(prompt.strip())
    return text if len(text) <= _PROMPT_CHARACTERS else "… " + text[-_PROMPT_CHARACTERS:]


def _visible(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    steers = unicodedata.category(character) in ("Cc", "Cs") or unicodedata.bidirectional(
        character
    ) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return "\N{REPLACEMENT CHARACTER}" if steers else character


def _first_samples(record: EvalRecord) -> dict[int, SampleRow]:
    rows: dict[int, SampleRow] = {}
    for row in record.samples:
        rows.setdefault(row.prompt_index, row)
    return rows


def _caption(record: EvalRecord, row: SampleRow) -> Text:
    cut = ", cut" if row.finish_reason == "length" else ""
    earned = "no reward" if math.isnan(row.reward) else f"reward {row.reward:.2f}"
    return Text(f"{record.label} ({earned}, {row.num_tokens} tokens{cut})")


def _title(record: EvalRecord) -> str:
    n, k = len(record.prompt_indices), record.samples_per_prompt
    if k == 0:
        return f"{n} held-out prompts, exact expectations"
    return f"{n} held-out prompts, {k} sample{'s' if k > 1 else ''} each{_judged(record)}"


def _judged(record: EvalRecord) -> str:
    """Return how many samples the number is over, where some got no reward; else nothing."""
    unjudged = record.metrics.get("unjudged", 0.0)
    if not unjudged:
        return ""
    judged = record.metrics.get("judged", 0.0)
    return f"; over {judged:.0f} judged samples, {unjudged:.0f} got no reward"


def _range(interval: Interval, *, sign: str = "") -> str:
    return f"[{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def _finite_mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
