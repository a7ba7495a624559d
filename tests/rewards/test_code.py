"""Code that models write: it is judged by its tests, and it cannot reach or outlive anything."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from rlkit.rewards.code import code
from rlkit.types import Completion, FinishReason, Prompt

ADD = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]
GOOD = "Sure:\n```python\ndef add(a, b):\n    return a + b\n```\n"


def forbidden() -> bool:
    return subprocess.run(["unshare", "-Urpnf", "true"], capture_output=True).returncode != 0


ISOLATION = "limits" if forbidden() else "namespaces"
"""Some containers forbid namespaces; what needs them is then tested for its one line."""


def completion(text: str, tests: object) -> Completion:
    prompt = Prompt(index=0, ids=(1,), text="q", columns={"tests": tests})
    return Completion(prompt=prompt, text=text, ids=(1,), finish_reason=FinishReason.stop)


def score(text: str, tests: object, **options: object) -> float | None:
    options = {"isolation": ISOLATION, "seconds": 1.0, **options}
    done = completion(text, tests)
    return code(done, run_what_models_write=True, **options)  # type: ignore[arg-type]


def block(*lines: str) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"


@pytest.mark.parametrize(
    ("text", "tests", "whole", "share"),
    [
        (GOOD, ADD, 1.0, 1.0),
        (block("def add(a, b):", "    return abs(a) + b"), ADD, 0.0, 0.5),
        ("def add(a, b): return a + b", ADD, 1.0, 1.0),  # no fence: all of it is the code
        ("I cannot.", ADD, 0.0, 0.0),
        (block("import os", "os._exit(0)"), ADD, 0.0, 0.0),  # an early end is no success
        (block("raise SystemExit"), ["x = 1"], 1.0, 1.0),
        (block("print(int(input()) * 2)"), [{"input": "4\n", "output": "8"}], 1.0, 1.0),
        (
            block("print(8)"),
            [{"input": "4", "output": "8"}, {"input": "5", "output": "10"}],
            0.0,
            0.5,
        ),
        (block("while True: pass"), ["assert True"], 0.0, 0.0),
        (block("x = 'a' * (4 << 30)"), ["assert len(x) > 1"], 0.0, 0.0),  # beyond its memory
        (block("import os", "n = len(os.environ) - 3"), ["assert n <= 0"], 1.0, 1.0),
    ],
)
def test_tests_decide(text: str, tests: object, whole: float, share: float) -> None:
    assert score(text, tests) == whole
    assert score(text, tests, share=True) == share


def test_there_is_no_network_and_no_child_survives(tmp_path: Path) -> None:
    if ISOLATION == "limits":
        with pytest.raises(OSError, match="set isolation=limits"):
            score(GOOD, ADD, isolation="namespaces")
        return
    dial = ["import socket", "s = socket.create_connection(('127.0.0.1', 22), 1)"]
    assert score(block(*dial), ["assert s"]) == 0.0
    reached = [
        "try:",
        "    socket.create_connection(('127.0.0.1', 9), 1)",
        "except OSError as error:",
        "    n = error.errno",
    ]
    assert score(block("import socket", *reached), ["assert n == 101"]) == 1.0  # no route at all
    alive = tmp_path / "alive"
    daemon = f"sleep 1; while true; do touch {alive}; sleep 0.1; done"
    escape = block(
        "import subprocess",
        f"subprocess.Popen(['setsid', 'sh', '-c', {daemon!r}], start_new_session=True)",
    )
    assert score(escape, ["assert True"]) == 1.0
    time.sleep(1.5)
    assert not alive.exists()
    assert "rlkit-code-" not in " ".join(os.listdir("/proc/self/fd"))


def test_it_is_opt_in_and_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="run_what_models_write must be true"):
        code(completion(GOOD, ADD))
    with pytest.raises(ValueError, match="column tests must hold a list of tests, got 'assert"):
        score(GOOD, "assert add(1, 2) == 3")
    with pytest.raises(ValueError, match="must hold texts or objects with input and output"):
        score(GOOD, [{"in": 1}])
    with pytest.raises(ValueError, match="'jail' is not a valid Isolation"):
        score(GOOD, ADD, isolation="jail")
    assert score(GOOD, None) is None
