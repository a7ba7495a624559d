"""`rlkit env` prints versions and hardware, for bug reports."""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.cli import UsageError

SUMMARY = "versions and hardware, for bug reports"


def run(arguments: Sequence[str]) -> int:
    """Print one `name: value` line each."""
    if {"-h", "--help"} & set(arguments):
        print("rlkit env        prints one `name: value` line each; it takes no arguments")
        return 0
    if arguments:
        raise UsageError(f"`rlkit env` takes no arguments, got {' '.join(arguments)}")
    from rlkit.launch.environment import hardware, versions

    for name, value in {**versions(), **hardware()}.items():
        print(f"{name}: {value}")
    return 0
