"""`docs/faults.md` is made from the results: what was injected, what survived, what was lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.faults.row import Row

PAGE = Path(__file__).parent.parent.parent / "docs/faults.md"
_ORDER = (
    *("F1", "F2", "F3", "F4", "F5", "F6", "F7", "F8", "F9", "F10", "F11", "F12", "F13", "F14"),
    *("F15", "F16", "F17", "F18", "F19", "F20", "F21", "F22", "resume", "derived", "soak"),
)
_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        "| fault | injected | survived | lost | what happened |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = (row.name, row.injected, row.survived, row.lost, row.note)
        lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def write_page(results: Path) -> None:
    """Put the table of all results into the page; the text around it is written by hand."""
    records = [json.loads(file.read_text()) for file in sorted(results.glob("*.json"))]
    text = PAGE.read_text()
    head, _, rest = text.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    shown = table(rows_of(records))
    PAGE.write_text(f"{head}{_BEGIN}\n\n{shown}\n\n{_END}{tail}")


def rows_of(records: Sequence[Any]) -> list[Row]:
    """Return the rows of result files: a file holds one row, or a list of them as `rows`.

    Of several rows of one name the last one counts.
    """
    names = [field.name for field in fields(Row)]
    found = dict[str, Row]()
    for record in records:
        entries = record["rows"] if isinstance(record, dict) and "rows" in record else record
        for entry in entries if isinstance(entries, list) else [entries]:
            found[entry["name"]] = Row(**{name: entry[name] for name in names})
    return sorted(found.values(), key=lambda row: _place(row.name))


def _place(name: str) -> tuple[int, str]:
    first = name.split()[0]
    return (_ORDER.index(first) if first in _ORDER else len(_ORDER), name)
