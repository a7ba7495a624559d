"""This module writes every number of a report as CSV and Parquet.

The tables are runs, variants, evaluations and steps.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlkit.report.arms import Arm
from rlkit.report.job import JobRecord
from rlkit.report.results import Results
from rlkit.stats import Estimate
from rlkit.tracking.files import write_atomic

Record = Mapping[str, object]
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def export_tables(results: Results, folder: Path) -> list[Path]:
    """Write `runs`, `variants`, `evals` and `steps`, each as .csv and .parquet.

    Raises:
        TrackingError: a file could not be written.
    """
    tables = {
        "runs": _runs(results),
        "variants": _variants(results),
        "evals": _evals(results),
        "steps": _steps(results),
    }
    paths = []
    for name, records in tables.items():
        if not records:
            continue
        columns = list(dict.fromkeys(key for record in records for key in record))
        for suffix, data in (
            ("csv", _csv(records, columns)),
            ("parquet", _parquet(records, columns)),
        ):
            path = folder / f"{name}.{suffix}"
            write_atomic(path, data)
            paths.append(path)
    return paths


def _runs(results: Results) -> list[Record]:
    return [
        {
            **_who(row.arm, job),
            "state": job.state.value,
            "message": job.message,
            "folder": _place(results, job),
            results.column: row.values.get(job.seed) if job.done else None,
            "kl": row.kls.get(job.seed) if job.done else None,
            "samples": _last(job, "samples"),
            "seconds": _last(job, "seconds"),
        }
        for row in results.rows
        for job in row.arm.jobs
    ]


def _variants(results: Results) -> list[Record]:
    records: list[Record] = []
    for row in results.rows:
        comparison = row.comparison
        records.append(
            {
                "panel": row.arm.panel,
                "variant": row.arm.variant,
                "baseline": row.is_baseline,
                "seeds": len(row.values),
                "before": _known(row.start),
                **_estimate("after", row.final),
                **_estimate("difference", comparison.difference if comparison else None),
                "p_different": comparison.p_different if comparison else None,
                "p_outside_margin": comparison.p_outside if comparison else None,
                "verdict": comparison.verdict.value if comparison else None,
                "margin": results.margin,
                **_estimate("kl", row.kl),
                **_estimate("training_reward", row.training),
                "remarks": "; ".join(row.remarks),
            }
        )
    return records


def _evals(results: Results) -> list[Record]:
    return [
        {
            **_who(row.arm, job),
            "label": record.label,
            "step": record.step,
            **{name: _known(value) for name, value in record.metrics.items()},
            record.measure.value: _known(record.interval.mean),
        }
        for row in results.rows
        for job in row.arm.jobs
        for record in job.evals
    ]


def _steps(results: Results) -> list[Record]:
    records: list[Record] = []
    for row in results.rows:
        for job in row.arm.jobs:
            columns = {name: column.tolist() for name, column in job.steps.items()}
            who = _who(row.arm, job)
            records += [
                {**who, **{name: _known(column[i]) for name, column in columns.items()}}
                for i in range(len(columns.get("step", ())))
            ]
    return records


def _who(arm: Arm, job: JobRecord) -> Record:
    return {"panel": arm.panel, "variant": arm.variant, "seed": job.seed, "job": job.id}


def _estimate(name: str, found: Estimate | None) -> Record:
    if found is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def _last(job: JobRecord, name: str) -> float | None:
    column = job.steps.get(name)
    return _known(float(column[-1])) if column is not None and len(column) else None


def _place(results: Results, job: JobRecord) -> str:
    """Return the place below the study's folder: published data should name no home directory."""
    root = results.study.folder
    if root is not None and job.folder.is_relative_to(root):
        return str(job.folder.relative_to(root))
    return str(job.folder)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _csv(records: Sequence[Record], columns: Sequence[str]) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({k: _inert(v) for k, v in record.items()} for record in records)
    return buffer.getvalue().encode()


def _inert(value: object) -> object:
    """Return a text that no spreadsheet takes for a formula: an apostrophe says that it is text."""
    if not isinstance(value, str):
        return value
    return (f"'{value}" if value.startswith(_FORMULAS) else value).replace("\r", " ")


def _parquet(records: Sequence[Record], columns: Sequence[str]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: [record.get(name) for record in records] for name in columns})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
