"""`rlkit serve` answers OpenAI's API with what a run trained, by vLLM's own server."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

SUMMARY = "an OpenAI-compatible server of what a run trained (vLLM's own)"


def run(arguments: Sequence[str]) -> int:
    """Become the server: this process ends with it."""
    from rlkit.cli import UsageError

    own, further = _split(arguments)
    parser = argparse.ArgumentParser(
        prog="rlkit serve", description=SUMMARY, epilog="Arguments after -- go to vLLM itself."
    )
    parser.add_argument("--run", type=Path, required=True, help="a run's folder")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--name", default="", help="of the model (default: the run's folder)")
    options = parser.parse_args(own)
    if not 0 < options.port < 2**16:
        raise UsageError(f"--port must be in [1, 65535], got {options.port}")
    # After the arguments: `--help` must not wait for torch and transformers.
    from rlkit.exports.serve import ServeRequest, prepare_server

    request = ServeRequest(
        run=options.run,
        host=options.host,
        port=options.port,
        name=options.name,
        further=further,
    )
    try:
        served = prepare_server(request, say=print)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(f"model {served.name} at http://{options.host}:{options.port}/v1")
    if served.stop:
        print(f"clients must send stop={list(served.stop)}, which ended answers in training")
    print(" ".join(served.command), flush=True)
    os.execv(served.command[0], served.command)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    words = list(arguments)
    place = words.index("--") if "--" in words else len(words)
    return words[:place], words[place + 1 :]
