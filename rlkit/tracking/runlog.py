"""The run's `log.txt` has everything logged, with tracebacks and without secrets."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from rlkit.runtime.redact import Redactor
from rlkit.tracking.base import Level
from rlkit.tracking.files import naming

MESSAGES = logging.getLogger("rlkit.run")
"""Carries `Tracker.message`; the console shows these itself."""
LEVELS = {
    Level.info: logging.INFO,
    Level.warning: logging.WARNING,
    Level.error: logging.ERROR,
}


class RunLog:
    """This log writes to `log.txt` while it is open.

    It takes rlkit's records from INFO on and others' from WARNING on.

    It appends, so that a resumed run keeps its past. A full disk silences the log, not the run.
    """

    def __init__(self, path: Path, redactor: Redactor) -> None:
        with naming(path):
            self._handler = _FileHandler(path, redactor)
        self._rlkit = logging.getLogger("rlkit")
        self._level = self._rlkit.level
        self._rlkit.setLevel(logging.INFO)
        logging.getLogger().addHandler(self._handler)
        logging.captureWarnings(True)

    def close(self) -> None:
        """Stop writing; idempotent."""
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(self._handler)
        self._rlkit.setLevel(self._level)
        with contextlib.suppress(OSError):
            self._handler.close()


class _FileHandler(logging.FileHandler):
    def __init__(self, path: Path, redactor: Redactor) -> None:
        super().__init__(path, mode="a", encoding="utf-8", errors="backslashreplace")
        self.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%F %T")
        )
        self._redactor = redactor

    def filter(self, record: logging.LogRecord) -> bool:
        ours = record.name == "rlkit" or record.name.startswith("rlkit.")
        return ours or record.levelno >= logging.WARNING

    def format(self, record: logging.LogRecord) -> str:
        return self._redactor.text(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: a log that cannot be written has nowhere to say so."""
