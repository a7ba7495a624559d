"""Signals: the first waits for a safe point, the second does not, more change nothing."""

from __future__ import annotations

import os
import signal
import time

import pytest

from rlkit.runtime.signals import STOP_SIGNALS
from rlkit.training.stopping import Interrupted, StopRequest, stop_on_signals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_waits_the_second_does_not_the_third_is_too_late(number: signal.Signals) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:  # under nohup, which a run respects
        signal.signal(number, signal.SIG_DFL)
    with stop_on_signals() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        assert not stop.hurried
        with pytest.raises(Interrupted, match=number.name):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert stop.hurried
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):  # whoever swallowed it meets it again
            stop.check()


def test_where_nothing_is_to_be_saved_the_first_is_enough() -> None:
    with stop_on_signals() as stop, pytest.raises(KeyboardInterrupt), stop.anywhere():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.hurried


def test_nohup_stays_in_force_and_handlers_come_back() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        term = signal.getsignal(signal.SIGTERM)
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check()
        assert signal.getsignal(signal.SIGTERM) is term
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_request_without_a_signal() -> None:
    stop = StopRequest()
    stop.request("enough")
    with pytest.raises(Interrupted, match="enough"):
        stop.check()


def test_a_request_that_is_passed_on_at_once_is_still_one_request() -> None:
    """Slurm signals every process of a job, and a launcher passes on what it hears as SIGINT."""
    with stop_on_signals() as stop:
        for number in (signal.SIGUSR2, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert not stop.hurried
        with pytest.raises(Interrupted, match="SIGUSR2"):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGUSR2)


def test_another_signal_later_is_another_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 2.5)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.hurried
