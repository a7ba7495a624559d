"""A pytest plugin: the seconds that each folder of tests took, printed after the run."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest


class FolderSeconds:
    """Adds up set-up, call and tear-down of every test, by the first folder below `tests`.

    Under pytest-xdist the workers' reports reach the controller, which adds and prints.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._tests: defaultdict[str, set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        folder = folder_of(report.nodeid)
        self._seconds[folder] += report.duration
        self._tests[folder].add(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._seconds:
            return
        terminalreporter.section("seconds per folder")
        for folder in sorted(self._seconds, key=lambda f: -self._seconds[f]):
            tests = len(self._tests[folder])
            terminalreporter.write_line(f"{self._seconds[folder]:8.1f} s {tests:6d}  {folder}")
        terminalreporter.write_line(f"{sum(self._seconds.values()):8.1f} s  in all folders")


def folder_of(nodeid: str) -> str:
    """Return `tests/kernels` for a test of that folder, and the file for one beside it."""
    path = Path(nodeid.split("::")[0])
    return "/".join(path.parts[:2])
