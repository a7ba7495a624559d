"""This module rewards code that passes tests; it runs what a model wrote, so it is opt-in.

Each completion runs in processes of its own, which `rlkit.runtime.sandbox` keeps from the rest of
the machine.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Any

from rlkit.rewards.load import per_sample
from rlkit.runtime.sandbox import Confinement, Isolation, run_python

if TYPE_CHECKING:
    from rlkit.types import Completion

_FENCE = re.compile(r"```(?:python|py|Python)?[ \t]*\n(.*?)\n?```", re.DOTALL)


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
    walls = Confinement(Isolation(isolation), seconds, memory_mb)
    # Each test is told by a secret that the code was not given.
    secret = secrets.token_hex(16)
    passed = len(run_python(source, walls, tests=asserts, secret=secret).passed) if asserts else 0
    for run in runs:
        printed = run_python(source, walls, stdin=str(run["input"])).printed
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


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]
