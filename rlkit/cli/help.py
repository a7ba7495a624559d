"""`rlkit --help` lists the commands, the groups and their options."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence

SUMMARY = "this text"

_HEAD = """\
rlkit: reinforcement learning of language models on one GPU

  rlkit [GROUP=OPTION] [KEY=VALUE]...            train
  rlkit -m KEY=VALUE,VALUE [KEY=VALUE]...        sweep: one run for each combination
"""
_TAIL = """\
  rlkit --cfg job [OVERRIDES]...    every key and its value, after the overrides
  rlkit algorithm.fn=FILE.py:NAME   an algorithm of your own (docs/algorithms.md)
  rlkit --config-dir DIR ...        groups and experiments of your own (also: --hydra-help)
"""


def run(arguments: Sequence[str]) -> int:
    """Print the help; what follows on the command line does not matter."""
    from rlkit.cli import COMMANDS, summary

    print(_HEAD)
    for name in sorted(COMMANDS):
        print(f"  rlkit {name:<12} {summary(name)}")
    print("\nGroups and their options:\n")
    for group, options in groups().items():
        print(_wrapped(group, options))
    print(f"\n{_TAIL}", end="")
    return 0


def groups() -> Mapping[str, list[str]]:
    """Return options of every configuration group, by name."""
    root = importlib.resources.files("rlkit.conf")
    found = {
        folder.name: sorted(
            file.name.removesuffix(".yaml")
            for file in folder.iterdir()
            if file.name.endswith(".yaml")
        )
        for folder in root.iterdir()
        if folder.is_dir()
    }
    return {name: found[name] for name in sorted(found) if found[name]}


def _wrapped(group: str, options: Sequence[str], width: int = 96) -> str:
    lines = [f"  {group:<11}"]
    for option in options:
        if len(lines[-1]) + len(option) + 1 > width:
            lines.append(" " * 13)
        lines[-1] += f" {option}"
    return "\n".join(lines)
