"""`rlkit watch` serves the report of a run or a sweep in the browser while it goes on."""

from __future__ import annotations

import sys
from collections.abc import Sequence

SUMMARY = "the report of a run or a sweep in the browser, renewed while it goes on"
_USAGE = """\
rlkit watch FOLDER [FOLDER]... [key=value]...

FOLDER is a sweep, a run, or a folder of runs. The page is served on this machine alone, at
127.0.0.1; from elsewhere: ssh -L PORT:127.0.0.1:PORT MACHINE. Nothing is written. ^C ends it.

"""
_MORE = """
  port=0           port to listen on, 0 = one that is free
  every=2          seconds between two looks at the folder, in [0.2, 3600]"""


def run(arguments: Sequence[str]) -> int:
    """Serve the page until ^C, and say in one line when the run has ended."""
    from rlkit.cli.study_options import HELP, parse

    if {"-h", "--help"} & set(arguments):
        print(f"{_USAGE}{HELP}{_MORE}")
        return 0
    from rlkit.cli import UsageError
    from rlkit.report.live.watch import serve
    from rlkit.report.live.watcher import Watcher
    from rlkit.report.load import StudyError
    from rlkit.tracking.summary import printable

    rest, port, every = _own(arguments)
    known = ("baseline", "panel", "metric", "margin", "at", "port", "every")
    paths, options = parse(rest, known=known)
    try:
        watcher = Watcher(paths, options, every=every)
        serve(watcher, port=port, say=lambda line: print(printable(line), flush=True))
    except StudyError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        print(f"rlkit: port {port} cannot be had: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _own(arguments: Sequence[str]) -> tuple[list[str], int, float]:
    """Return the arguments that `rlkit report` has as well, the port, and the seconds."""
    from rlkit.cli import UsageError

    rest, port, every = [], 0, 2.0
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "port":
            if not (value.isascii() and value.isdigit() and int(value) < 2**16):
                raise UsageError(f"port must be in [0, 65535], got {value}")
            port = int(value)
        elif name == "every":
            try:
                every = float(value)
            except ValueError as error:
                raise UsageError(f"every must be a number, got {value}") from error
            if not 0.2 <= every <= 3600:
                raise UsageError(f"every must be in [0.2, 3600] seconds, got {value}")
        else:
            rest.append(argument)
    return rest, port, every
