"""`rlkit generate` prints completions of one prompt, from a base model or with an adapter."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

SUMMARY = "complete one prompt, with or without an adapter"


def run(arguments: Sequence[str]) -> int:
    """Print the completions, separated by a blank line when there are several."""
    from rlkit.cli import UsageError
    from rlkit.cli.session_options import add_arguments, check_model

    parser = argparse.ArgumentParser(prog="rlkit generate", description=SUMMARY)
    add_arguments(parser)
    parser.add_argument(
        "--raw",
        action="store_true",
        help="no chat template: continue the text, as runs of such a task do",
    )
    parser.add_argument("-n", "--num-samples", type=int, default=1)
    parser.add_argument("prompt", nargs="?", help="the prompt; - or nothing reads standard input")
    options = parser.parse_args(arguments)
    if options.raw and options.system:
        raise UsageError("--system needs the chat template: drop --raw")
    prompt = options.prompt
    if prompt is None or prompt == "-":
        prompt = sys.stdin.read()
    if not prompt.strip():
        where = "an empty standard input" if options.prompt in (None, "-") else repr(prompt)
        raise UsageError(f"prompt must hold text, got {where}")
    check_model(options)
    # After the arguments: `--help` must not wait for torch and transformers.
    from rlkit.cli.session import open_session
    from rlkit.tasks import Message, PromptStyle
    from rlkit.tracking.summary import printable

    session = open_session(options)
    raw = options.raw or (session.style is PromptStyle.raw and not options.system)
    asked = prompt if raw else [*session.opening(), Message("user", prompt)]
    try:
        rollouts = session.sample(asked, num_samples=options.num_samples)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print("\n\n".join(printable(session.text(rollout)) for rollout in rollouts))
    return 0
