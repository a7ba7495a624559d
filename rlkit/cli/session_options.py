"""`chat` and `generate` share these options; the module is light to import, for `--help`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say which model to sample from, and how."""
    parser.add_argument("--run", type=Path, help="a run's folder: what it learnt, as it was asked")
    parser.add_argument("--model", help="starter, a hub id, a folder or a .gguf file")
    parser.add_argument("--adapter", type=Path, help="a folder in PEFT format")
    parser.add_argument(
        "--template-kwargs",
        type=_json_object,
        default={},
        metavar="JSON",
        help="variables of the chat template, with --model; a run brings its own",
    )
    parser.add_argument("--system", help="system message (default: that of the run's task)")
    of_run = "(default: the run's, else "
    parser.add_argument("--max-tokens", type=int, help=f"longest completion {of_run}256)")
    parser.add_argument("--temperature", type=float, help=f"0 = greedy {of_run}0.7)")
    parser.add_argument("--top-p", type=float, help=f"in (0, 1], 1 = off {of_run}1)")
    parser.add_argument("--top-k", type=int, help=f"0 = off, 1 = greedy {of_run}0)")
    parser.add_argument("--min-p", type=float, help=f"in [0, 1), 0 = off {of_run}0)")
    parser.add_argument("--seed", type=int, default=0)


def _json_object(text: str) -> dict[str, object]:
    """Read a JSON object from the command line; argparse words the error."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text}")
    return value


def check_model(options: argparse.Namespace) -> None:
    """Raise UsageError when --model names nothing that can be had: a second, not ten with torch."""
    from rlkit.cli import UsageError
    from rlkit.models import ModelConfig
    from rlkit.models.source import check_reachable

    if options.model is None:
        return
    try:
        check_reachable(ModelConfig(source=options.model), say=print)
    except ValueError as error:
        raise UsageError(str(error)) from error
