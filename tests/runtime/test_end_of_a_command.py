"""A signal that comes while Python ends changes nothing: the command is done, and says so."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

_SCRIPT = """
import atexit, sys, time
from rlkit.__main__ import main

def slow():
    print("ending", flush=True)
    time.sleep(60)

atexit.register(slow)
sys.argv = ["rlkit", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["diff", "/nowhere"], 2)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_late_signal_ends_it_with_its_own_code(
    number: signal.Signals, arguments: list[str], code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert any(line.strip() == "ending" for line in process.stdout)
    process.send_signal(number)
    assert process.wait(10) == code


def test_who_ignores_sighup_still_does() -> None:
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + _SCRIPT
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--version"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("rlkit ")
    assert process.stdout.readline().strip() == "ending"
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.kill()
    process.wait()
