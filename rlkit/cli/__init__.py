"""This is the command line: `rlkit [overrides]` trains, `rlkit COMMAND` does the rest.

Each command lives in a module of its own with `SUMMARY` and `run(arguments) -> exit code`. Exit
codes: 0 done, 1 failed, 2 bad input (nothing was started), 130 interrupted (saved, resumable).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Protocol, cast

import rlkit
from rlkit.runtime.distribution import other_project
from rlkit.runtime.private_names import MissingName
from rlkit.runtime.redact import Redactor
from rlkit.schema import one_line

# Modules are imported when called: `rlkit env` must not wait for torch and transformers.
COMMANDS = {
    "chat": "rlkit.cli.chat",
    "check": "rlkit.cli.check",
    "compare": "rlkit.cli.compare",
    "convert-config": "rlkit.cli.convert_config",
    "diff": "rlkit.cli.diff",
    "env": "rlkit.cli.env",
    "eval": "rlkit.cli.evaluate",
    "export": "rlkit.cli.export",
    "generate": "rlkit.cli.generate",
    "judge-check": "rlkit.cli.judge_check",
    "push": "rlkit.cli.push",
    "quantize": "rlkit.cli.quantize",
    "replay": "rlkit.cli.replay",
    "report": "rlkit.cli.report",
    "reward-model": "rlkit.cli.reward_model",
    "serve": "rlkit.cli.serve",
    "watch": "rlkit.cli.watch",
}


class Command(Protocol):
    """A command is a module of this package; it is light to import, whatever `run` loads."""

    SUMMARY: str

    def run(self, arguments: Sequence[str]) -> int: ...


class UsageError(ValueError):
    """The input is bad, which was found before anything started; the message is one line."""


def run(arguments: Sequence[str]) -> int:
    """Dispatch to a command, or to training; bad input becomes one line and exit code 2."""
    if (other := other_project()) is not None:
        print(f"rlkit: warning: {other}", file=sys.stderr)
    name = arguments[0] if arguments else ""
    rest = arguments[1:] if name in COMMANDS else arguments
    module = COMMANDS.get(name, "rlkit.cli.train")
    if name in ("-h", "--help", "help"):
        module = "rlkit.cli.help"
    if name in ("--version", "-V"):
        print(f"rlkit {rlkit.__version__}")
        return 0
    try:
        return _command(module).run(rest)
    except (UsageError, MissingName) as error:
        print(f"rlkit: {one_line(Redactor.of_process().text(str(error)))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rlkit: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `rlkit env | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def summary(name: str) -> str:
    """Return one line about a command."""
    return _command(COMMANDS[name]).SUMMARY


def _command(module: str) -> Command:
    return cast(Command, importlib.import_module(module))
