"""A rank other than the first keeps a log of its own, and leaves everything else to the first."""

from __future__ import annotations

from pathlib import Path

from rlkit.runtime.redact import Redactor
from rlkit.tracking.base import Level, Outcome
from rlkit.tracking.quiet import QuietTracker
from rlkit.tracking.runlog import LEVELS, MESSAGES, RunLog


class Bystander(QuietTracker):
    """This tracker writes `log.rank1.txt` and nothing else."""

    def __init__(self, run_dir: Path, redactor: Redactor, *, rank: int) -> None:
        self._log = RunLog(run_dir / f"log.rank{rank}.txt", redactor)

    def message(self, level: Level, text: str) -> None:
        """Log the message."""
        MESSAGES.log(LEVELS[level], text)

    def finish(self, outcome: Outcome) -> None:
        """Log why this rank ended, if it did not complete."""
        if outcome.message:
            MESSAGES.error(outcome.message)

    def close(self, deadline_s: float) -> None:
        """Close the log; it takes no time, whatever `deadline_s` allows."""
        self._log.close()
