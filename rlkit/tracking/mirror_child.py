"""`python -m rlkit.tracking.mirror_child` is the child of a `Mirror`: JSON lines in and out.

Each line of input is one event; each is answered by `{}` or by `{"error": reason}` and the end.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO

from rlkit.tracking.files import number
from rlkit.tracking.services import ServiceSession, open_session


def main() -> int:
    """Serve events until the input ends; returns the exit code."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what the clients print goes to the log, not among the answers
    session: ServiceSession | None = None
    try:
        for line in sys.stdin:
            session = _handle(json.loads(line), session)
            _answer(answers, {})
        if session is not None:  # the run died without a word
            session.finish(1)
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        _answer(answers, {"error": reason})
        return 1
    return 0


def _handle(event: dict[str, Any], session: ServiceSession | None) -> ServiceSession | None:
    if event["event"] == "start":
        return open_session(event)
    if session is None:
        raise RuntimeError(f"event {event['event']} without a session")
    if event["event"] == "finish":
        session.finish(event["exit_code"])
        return None
    if event["event"] == "table":
        session.table(event["name"], event["columns"], event["rows"], event["step"])
        return session
    metrics = {name: number(value) for name, value in event["metrics"].items()}
    session.log(metrics, event["step"])
    return session


def _answer(answers: BinaryIO, content: dict[str, str]) -> None:
    answers.write(json.dumps(content).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
