"""This loop serves a watcher until ^C, and says when runs have ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from rlkit.report.live.server import LiveServer
from rlkit.report.live.watcher import Watcher


def serve(watcher: Watcher, *, port: int, say: Callable[[str], None]) -> None:
    """Serve the page until KeyboardInterrupt, which ends it without a trace.

    Args:
        watcher: The study and its page.
        port: A port of loopback; 0 = one that is free.
        say: It is given one line where the page is, and one each time that all runs have ended.

    Raises:
        OSError: the port cannot be had.
    """
    with suppress(KeyboardInterrupt), LiveServer(watcher, port=port).serving() as server:
        say(f"watching {watcher.name} at {server.address} (^C ends it)")
        _follow(watcher, say)


def _follow(watcher: Watcher, say: Callable[[str], None]) -> None:
    told = ""
    while True:
        ended = watcher.ended()
        if ended != told:
            say(f"{ended}; its page stays here until ^C" if ended else "a run goes on")
            told = ended
        time.sleep(watcher.every)
