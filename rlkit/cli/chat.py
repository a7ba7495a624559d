"""`rlkit chat` holds a conversation with a model, with or without an adapter."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

SUMMARY = "talk to a model, with or without an adapter"


def run(arguments: Sequence[str]) -> int:
    """Read lines, print replies; an empty line or Ctrl-D ends, /reset forgets the conversation."""
    from rlkit.cli import UsageError
    from rlkit.cli.session_options import add_arguments, check_model

    parser = argparse.ArgumentParser(prog="rlkit chat", description=SUMMARY)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    check_model(options)
    # After the arguments: `--help` must not wait for torch and transformers.
    from rlkit.cli.session import open_session
    from rlkit.tracking.summary import printable

    session = open_session(options)
    from rlkit.tasks import Message

    messages = session.opening()
    print("Type a message; /reset starts over, an empty line ends.")
    turn = 0
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return 0
        if not line:
            return 0
        if line == "/reset":
            messages = session.opening()
            continue
        messages.append(Message("user", line))
        try:
            (rollout,) = session.sample(messages, num_samples=1, turn=turn)
        except ValueError as error:
            raise UsageError(str(error)) from error
        reply = session.text(rollout)
        messages.append(Message("assistant", reply))
        turn += 1
        print(printable(reply))
