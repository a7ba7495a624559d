"""`python -m benchmarks.faults` injects faults, prints the table and writes the results as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT)]

from benchmarks.faults.page import table, write_page  # noqa: E402
from benchmarks.faults.row import Row  # noqa: E402
from rlkit.launch.environment import hardware, versions  # noqa: E402

RESULTS = Path(__file__).parent / "results"


class Family(NamedTuple):
    """A family of faults has a module, and the counts of its long and its short run."""

    module: str
    long: int
    short: int


FAMILIES = {
    "F1": Family("kill", 200, 4),
    "F2": Family("boundaries", 100_000, 12),
    "F3": Family("damage", 100_000, 100),
    "F4": Family("disk", 20, 2),
    "F5": Family("signals", 60, 3),
    "F6": Family("not_finite", 14, 14),
    "F7": Family("rewards", 28, 4),
    "F7e": Family("environments", 80, 8),
    "F8": Family("formulas", 206, 8),
    "F10": Family("trackers", 10, 1),
    "F11": Family("prompts", 32, 4),
    "F12": Family("completions", 32, 32),
    "F13": Family("bad_values", 100, 2),
    "F14": Family("names", 130, 5),
    "F15": Family("strangers", 69, 5),
    "F16": Family("secrets", 8, 3),
    "F19": Family("splits", 500, 50),
    "F20": Family("sweeps", 50, 0),
    "F21": Family("seeds", 20, 1),
    "resume": Family("resume", 100_000, 2),
    "derived": Family("derived", 12, 1),
    "leftovers": Family("leftovers", 50, 9),
    "soak": Family("soak", 2000, 0),
}
"""The families of this table, by the names that `--only` takes."""


def main(arguments: list[str]) -> int:
    """Run the families that were asked for; the exit code is 1 when anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument(
        "--short", action="store_true", help="few of each kind: two to three minutes"
    )
    parser.add_argument("--only", nargs="+", choices=FAMILIES, help="these families alone")
    parser.add_argument("--count", type=int, help="how many of each, in place of the usual")
    parser.add_argument("--no-page", action="store_true", help="leave results and page alone")
    options = parser.parse_args(arguments)
    rows, broken = list[Row](), list[str]()
    for name in options.only or FAMILIES:
        family = FAMILIES[name]
        count = options.count or (family.short if options.short else family.long)
        if count == 0:
            continue
        begun = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix=f"faults-{name}-") as folder:
                row = _run(family, count, Path(folder))
        except Exception:  # the other injectors are worth their rows
            traceback.print_exc()
            broken.append(name)
            continue
        seconds = time.monotonic() - begun
        rows.append(row)
        print(
            f"{name}: {row.survived} of {row.injected} in {seconds:.0f} s; {row.note}", flush=True
        )
        if not options.short and not options.no_page:
            _keep(name, row, seconds, arguments)
    print(table(rows))
    if not options.short and not options.no_page:
        write_page(RESULTS)
    if broken:
        print(f"these injectors did not come to their end: {', '.join(broken)}")
    return int(bool(broken) or any(row.lost for row in rows))


def _run(family: Family, count: int, folder: Path) -> Row:
    module = importlib.import_module(f"benchmarks.faults.{family.module}")
    row: Row = module.run(count, folder)
    return row


def _keep(name: str, row: Row, seconds: float, arguments: list[str]) -> None:
    record = {
        "family": name,
        **asdict(row),
        "seconds": round(seconds, 1),
        "command": shlex.join(["python", "-m", "benchmarks.faults", *arguments]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": hardware(devices=False),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
