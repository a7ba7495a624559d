"""The headline says in one sentence what the study found, and no more than its seeds allow."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlkit.report.job import JobRecord
from rlkit.report.load import Study
from rlkit.report.measure import SUCCESS, At, eval_value
from rlkit.report.results import Results
from rlkit.report.rows import VariantRow
from rlkit.report.text import count_of, fixed, with_range
from rlkit.stats import MIN_SEEDS, Verdict, estimate
from rlkit.tracking.intervals import change

_NAMED = 3


def headline(results: Results) -> str:
    """Return one sentence or two; what is not finished yet comes first."""
    jobs = results.study.jobs
    done = sum(job.done for job in jobs)
    text = _verdict(results, done)
    if done == len(jobs):
        return text
    return f"{done} of {count_of(len(jobs), 'job')} completed. {text}"


def counts(study: Study) -> dict[str, int]:
    """Return how many jobs are in each state that occurs."""
    found: dict[str, int] = {}
    for job in study.jobs:
        found[job.state.value] = found.get(job.state.value, 0) + 1
    return found


def _verdict(results: Results, done: int) -> str:
    if not done:
        return "No run has completed yet."
    if len(results.study.jobs) == 1:
        return _one_run(results.study.jobs[0])
    rows = [row for row in results.rows if row.final is not None]
    if not rows:
        return f"No completed run has a finite {results.metric_label}."
    if len(rows) == 1:
        return _one_arm(results, rows[0])
    compared = [row for row in rows if row.comparison is not None]
    judged = [row for row in compared if row.verdict is not Verdict.too_few]
    if not judged:
        return _points(results, rows)
    return _comparisons(results, judged, len(compared) - len(judged))


def _one_run(job: JobRecord) -> str:
    steps = len(job.steps.get("step", ()))
    if not job.evals:
        return f"{count_of(steps, 'step')}, without a held-out evaluation."
    before, after = job.evals[0], job.evals[-1]
    if after.step == before.step:
        what = after.measure.value
        return f"Held-out {what} {fixed(after.interval.mean)} after {after.step} updates."
    moved = change(before, after)
    exact = after.samples_per_prompt == 0
    name = "Expected reward" if exact else f"Held-out {after.measure.value}"
    text = f"{name} {fixed(before.interval.mean)} → {fixed(after.interval.mean)}"
    if moved is not None and not exact:
        count = len(after.prompt_indices)
        text += (
            f" ({fixed(moved.mean, sign='+')}, 95% [{fixed(moved.low, sign='+')}, "
            f"{fixed(moved.high, sign='+')}] over {count_of(count, 'prompt')})"
        )
    text += f" in {after.step} steps"
    kl = after.metrics.get("kl", math.nan)
    if math.isfinite(kl):
        text += f", KL to the reference {fixed(kl)} nats a completion"
    return f"{text}. One seed: it says nothing about others."


def _one_arm(results: Results, row: VariantRow) -> str:
    assert row.final is not None
    seeds = count_of(row.final.size, "seed")
    of = f" of {_name(row)}" if len(results.rows) > 1 else ""
    label = f"{_capital(results.metric_label)}{of}"
    text = f"{label} {fixed(row.start)} → {with_range(row.final)}, {seeds}"
    jobs = row.arm.done
    if results.metric == SUCCESS and results.at is At.end:
        gains = [
            eval_value(job.evals[-1], SUCCESS) - eval_value(job.evals[0], SUCCESS)
            for job in jobs.values()
            if len(job.evals) > 1
        ]
        gains = [gain for gain in gains if math.isfinite(gain)]
        if len(gains) >= MIN_SEEDS:
            text += f"; change {with_range(estimate(gains), sign='+')}"
    return f"{text}."


def _points(results: Results, rows: Sequence[VariantRow]) -> str:
    best = max(rows, key=lambda row: -math.inf if row.final is None else row.final.mean)
    assert best.final is not None
    fewest = max(row.final.size for row in rows if row.final is not None)
    return (
        f"At most {count_of(fewest, 'seed')} a variant: points, no intervals and no verdict "
        f"(that takes {MIN_SEEDS}). Highest mean {results.metric_label}: {_name(best)}, "
        f"{fixed(best.final.mean)}."
    )


def _comparisons(results: Results, judged: Sequence[VariantRow], too_few: int) -> str:
    groups: dict[Verdict, list[VariantRow]] = {}
    for row in judged:
        assert row.comparison is not None
        groups.setdefault(row.comparison.verdict, []).append(row)
    words = {
        Verdict.above: "higher",
        Verdict.below: "lower",
        Verdict.similar: f"similar (within ±{results.margin:g})",
        Verdict.inconclusive: "inconclusive",
    }
    parts = []
    limit = _NAMED if len(results.panels) == 1 else 1
    for verdict, word in words.items():
        found = groups.get(verdict, [])
        if found:
            parts.append(f"{len(found)} {word}{_examples(found, verdict, limit=limit)}")
    if too_few:
        parts.append(f"{too_few} with too few seeds")
    noun = count_of(len(judged) + too_few, "variant" if len(results.panels) == 1 else "comparison")
    return (
        f"{_capital(results.metric_label)} against {results.baseline}, {noun}: {'; '.join(parts)}."
    )


def _examples(rows: Sequence[VariantRow], verdict: Verdict, *, limit: int) -> str:
    if verdict is Verdict.inconclusive:
        return ""
    ordered = sorted(rows, key=lambda row: -abs(_difference(row)))
    shown = [f"{_name(row)} {fixed(_difference(row), sign='+')}" for row in ordered[:limit]]
    more = ", …" if len(ordered) > limit else ""
    return f" ({', '.join(shown)}{more})"


def _difference(row: VariantRow) -> float:
    return math.nan if row.comparison is None else row.comparison.difference.mean


def _name(row: VariantRow) -> str:
    return f"{row.arm.variant} [{row.arm.panel}]" if row.arm.panel else row.arm.variant


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
