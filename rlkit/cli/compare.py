"""`rlkit compare` shows variants of a sweep, or several runs or sweeps, as a table."""

from __future__ import annotations

from collections.abc import Sequence

SUMMARY = "runs or sweeps side by side on the terminal"
_USAGE = """\
rlkit compare A [B]... [key=value]...

One folder: the variants of a sweep, or the runs below a folder. Several: each of A, B, ... is one
side, a run or a folder of runs; the others are compared with A, seed by seed.

"""


def run(arguments: Sequence[str]) -> int:
    """Print the tables; nothing is written."""
    from rlkit.cli.study_options import HELP, parse

    if {"-h", "--help"} & set(arguments):
        print(f"{_USAGE}{HELP}")
        return 0
    from rich.console import Console

    from rlkit.cli import UsageError
    from rlkit.report.build import analyse_with
    from rlkit.report.load import StudyError, load_sides, load_study
    from rlkit.report.terminal import print_results

    paths, options = parse(arguments, known=("baseline", "panel", "metric", "margin", "at"))
    try:
        study = load_sides(paths) if len(paths) > 1 else load_study(paths)
        results = analyse_with(study, options)
    except StudyError as error:
        raise UsageError(str(error)) from error
    print_results(Console(), results)
    return 0
