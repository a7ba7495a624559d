"""This module rewards code that passes tests; it runs what a model wrote, so it is opt-in.

Each completion runs in processes of its own: no network, no environment variables, an empty folder,
and limits on time, memory, files and processes. Namespaces of Linux give all that; when the first
process of a namespace ends, the kernel kills its children, whatever they did to get away.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit.rewards.load import per_sample

if TYPE_CHECKING:
    from rlkit.types import Completion

_FENCE = re.compile(r"```(?:python|py|Python)?[ \t]*\n(.*?)\n?```", re.DOTALL)
_RUNNER = Path(__file__).with_name("code_runner.py")
_GRACE_S = 1.0
"""Seconds that the processes may take beyond the limit, to start and to end."""


class Isolation(StrEnum):
    """This names what keeps the code from the rest of the machine."""

    namespaces = "namespaces"
    """No network, and no process survives. Needs user namespaces, which containers may forbid."""
    limits = "limits"
    """Limits and a killed process group alone: the network stays, and a process may escape."""


@per_sample
def code(
    completion: Completion,
    *,
    run_what_models_write: bool = False,
    column: str = "tests",
    isolation: str = "namespaces",
    seconds: float = 5.0,
    memory_mb: int = 512,
    share: bool = False,
) -> float | None:
    """Return whether the last block of Python in the text passes the prompt's tests.

    The column holds a list. A text is Python that runs after the code and must not raise, such as
    `assert add(1, 2) == 3`. An object `{"input": ..., "output": ...}` is a run of its own: what the
    code prints for this standard input, white space at the ends of lines aside.

    A text runs in the code's own process. Code that looks for the way in which the result is told
    could fake it; runs with input and output cannot be faked.

    Args:
        completion: The sample. Without a fenced block the whole text is the code.
        run_what_models_write: Must be true: this function runs code that nobody has read.
        column: The column with the tests.
        isolation: One of `namespaces` and `limits`, see `Isolation`.
        seconds: CPU and wall-clock seconds of each run, > 0; keep `reward.timeout_s` above the sum.
        memory_mb: Address space of each process in MB, >= 64.
        share: Whether the value is the share of passed tests, in place of 1.0 for all.

    Returns:
        A number in [0, 1]; None when the column holds null.

    Raises:
        ValueError: The option that opts in is missing, or the tests have another form.
        OSError: The machine forbids the isolation that is asked for.
    """
    if run_what_models_write is not True:
        raise ValueError("run_what_models_write must be true, for this runs code that nobody read")
    if not seconds > 0 or memory_mb < 64:
        raise ValueError(f"seconds must be > 0 and memory_mb >= 64, got {seconds} and {memory_mb}")
    tests = completion.prompt.columns[column]
    if tests is None:
        return None
    asserts, runs = _sorted(tests, column)
    blocks = _FENCE.findall(completion.text)
    source = blocks[-1] if blocks else completion.text
    limits = {"isolation": Isolation(isolation).value, "seconds": seconds, "memory_mb": memory_mb}
    passed = _pass_asserts(source, asserts, limits) if asserts else 0
    for run in runs:
        _, printed = _run({**limits, "source": source, "tests": [], "input": str(run["input"])})
        passed += _lines(printed) == _lines(str(run["output"]))
    total = len(asserts) + len(runs)
    return passed / total if share else float(passed == total)


def _sorted(tests: Any, column: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the tests in Python and those of input and output."""
    if not isinstance(tests, list) or not tests:
        raise ValueError(f"column {column} must hold a list of tests, got {tests!r:.60}")
    texts = [t for t in tests if isinstance(t, str)]
    runs = [t for t in tests if isinstance(t, dict) and {"input", "output"} <= t.keys()]
    if len(texts) + len(runs) != len(tests):
        raise ValueError(
            f"column {column} must hold texts or objects with input and output, got {tests!r:.60}"
        )
    return texts, runs


def _pass_asserts(source: str, tests: list[str], limits: dict[str, Any]) -> int:
    """Return how many tests pass; each is told by a secret that the code was not given."""
    secret = secrets.token_hex(16)
    told, _ = _run({**limits, "source": source, "tests": tests, "secret": secret})
    return sum(f"{secret} {i}" in told.split("\n") for i in range(len(tests)))


def _run(job: dict[str, Any]) -> tuple[str, str]:
    """Run one job in an empty folder; return what the runner told, and what the code printed."""
    with tempfile.TemporaryDirectory(prefix="rlkit-code-") as folder:
        told, tell = os.pipe()
        printed = Path(folder) / "printed"
        inside = Path(folder) / "inside"
        inside.mkdir()
        try:
            with printed.open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, "-I", str(_RUNNER), str(tell)],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.DEVNULL,
                    cwd=inside,
                    env={"PATH": "/usr/bin:/bin", "HOME": str(inside)},
                    pass_fds=(tell,),
                    start_new_session=True,
                )
            os.close(tell)
            tell = -1
            try:
                wait = float(job["seconds"]) + _GRACE_S
                process.communicate(json.dumps(job).encode(), timeout=wait)
            except subprocess.TimeoutExpired:
                pass
            finally:
                _kill(process)
            with os.fdopen(told, "rb", closefd=False) as stream:
                answer = stream.read().decode(errors="replace")
        finally:
            os.close(told)
            if tell >= 0:
                os.close(tell)
        if answer.startswith("forbidden "):
            raise OSError(answer.strip())
        return answer, printed.read_text(errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]
