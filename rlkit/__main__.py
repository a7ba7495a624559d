"""`rlkit` and `python -m rlkit`."""

import contextlib
import os
import signal
import sys
from types import FrameType

from rlkit.runtime.signals import STOP_SIGNALS

INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from rlkit.cli import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # during the imports, or once more during the end
        print("rlkit: stopped", file=sys.stderr)
        code = INTERRUPTED
    # What is left is the interpreter's own end, which would answer Ctrl-C with a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _flush()
    _keep(code)
    sys.exit(code)


def _keep(code: int) -> None:
    """Let a signal that comes too late end the process at once, with the code of what was done."""

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(code)

    for number in STOP_SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, leave)


def _flush() -> None:
    """Flush standard output; where its reader is gone, nothing is left to say."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
