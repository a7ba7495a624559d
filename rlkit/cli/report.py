"""`rlkit report` shows a run, a sweep or several runs as one self-contained HTML page."""

from __future__ import annotations

import sys
from collections.abc import Sequence

SUMMARY = "a run or a sweep as one HTML page, with figures and data"
_USAGE = """\
rlkit report FOLDER [FOLDER]... [key=value]...

FOLDER is a sweep (finished or not), a run, or a folder of runs. Writes report.html and the folder
report/ (curves, frontier and differences as PNG and SVG; runs, variants, evals and steps as CSV and
Parquet) into the sweep's or the run's own folder, or into rlkit-report/ for several folders.

"""
_MORE = """
  out=FOLDER       where to write instead
  figures=false    only the page"""


def run(arguments: Sequence[str]) -> int:
    """Write the page and print where it is, and what it says in one line."""
    from rlkit.cli.study_options import HELP, parse

    if {"-h", "--help"} & set(arguments):
        print(f"{_USAGE}{HELP}{_MORE}")
        return 0
    from rlkit.cli import UsageError
    from rlkit.report.build import write_report
    from rlkit.report.load import StudyError
    from rlkit.tracking import TrackingError
    from rlkit.tracking.summary import printable

    known = ("baseline", "panel", "metric", "margin", "at", "out", "figures")
    paths, options = parse(arguments, known=known)
    try:
        page, headline = write_report(paths, options)
    except StudyError as error:
        raise UsageError(str(error)) from error
    except (TrackingError, OSError) as error:
        print(f"rlkit: {error}", file=sys.stderr)
        return 1
    print(printable(headline))
    print(page)
    return 0
