"""The signals that ask a run to stop, for the process that hears them and those that pass them on.

It is light to import: every new process of rlkit reads it first.
"""

from __future__ import annotations

import signal

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""A terminal that is closed sends SIGHUP. Slurm sends SIGUSR1 or SIGUSR2 some time before a time
limit. They ask for the same as SIGTERM."""
