"""`rlkit convert-config` prints a configuration of TRL or verl as options of rlkit."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlkit.convert.base import Converted

SUMMARY = "a TRL GRPOConfig or a verl configuration as options of rlkit"
_USAGE = """\
rlkit convert-config FILE [from=trl|verl] [yaml=true]

FILE is a .json or .yaml file of either library, a .py file with GRPOConfig(...), or a .sh file that
starts verl. Nothing of it is executed. Keys that the file leaves out have the other library's
defaults. Every key without a counterpart is listed with the reason; none is dropped.

  from=verl    the library, where the keys do not tell
  yaml=true    an experiment file (my/experiment/NAME.yaml) in place of a command line

Exit code 0 when the options fit together, 1 when they do not; the last lines say why."""


def run(arguments: Sequence[str]) -> int:
    """Print the options, then what has none."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return 0
    from rlkit.cli import UsageError
    from rlkit.convert import trl, verl
    from rlkit.convert.read import Origin, origin_of, read

    words = dict(a.split("=", 1) for a in arguments if a.startswith(("from=", "yaml=")))
    paths = [a for a in arguments if not a.startswith(("from=", "yaml="))]
    if len(paths) != 1:
        raise UsageError(f"convert-config takes one FILE, got {' '.join(paths) or 'none'}")
    if words.get("yaml", "false") not in ("true", "false"):
        raise UsageError(f"yaml must be true or false, got {words['yaml']}")
    if words.get("from", "trl") not in list(Origin):
        raise UsageError(f"from must be trl or verl, got {words['from']}")
    try:
        values, unread = read(Path(paths[0]))
    except ValueError as error:
        raise UsageError(str(error)) from error
    origin = Origin(words["from"]) if "from" in words else origin_of(values)
    found = (verl if origin is Origin.verl else trl).convert(values)
    for line in _yaml(found) if words.get("yaml") == "true" else _command(found):
        print(line)
    for line in _remarks(found, unread):
        print(line)
    return _check(found)


def _command(found: Converted) -> Iterator[str]:
    """Yield one command line, an option a line."""
    yield "rlkit \\"
    words = found.words
    for word in words:
        quoted = f'"{word}"' if any(c in word for c in "'[]{} ") else word
        yield f"  {quoted}" + (" \\" if word != words[-1] else "")


def _yaml(found: Converted) -> Iterator[str]:
    """Yield an experiment: choices of groups as overrides of its defaults, then values."""
    import yaml
    from omegaconf import OmegaConf

    words = [word.lstrip("+") for word in found.words]
    groups = [word.split("=", 1) for word in words if "." not in word.split("=", 1)[0]]
    chosen = [pair for pair in groups if pair[0] in _groups()]
    yield "# @package _global_"
    yield "defaults:"
    yield from (f"  - override /{group}: {option}" for group, option in chosen)
    yield ""
    rest = [word for word in words if word.split("=", 1) not in chosen]
    values = OmegaConf.to_container(OmegaConf.from_dotlist(rest))
    yield from yaml.safe_dump(values, sort_keys=False).splitlines()


def _groups() -> set[str]:
    from rlkit.cli.help import groups

    return set(groups())


def _remarks(found: Converted, unread: Sequence[str]) -> Iterator[str]:
    """Yield comments: defaults that were filled in, differences, and keys without a counterpart."""
    filled = [option.word for option in found.options if option.by_default]
    if filled:
        yield "\n# The file does not set these; the values are the other library's defaults:"
        yield from (f"#   {word}" for word in filled)
    if found.notes:
        yield "\n# Differences that no option expresses:"
        yield from (f"#   {note}" for note in found.notes)
    if found.same:
        yield "\n# Need no option, as they are null, repeat others, or say what rlkit does anyway:"
        yield _wrapped(sorted(set(found.same)))
    if found.lost or unread:
        yield "\n# Have no counterpart:"
    for reason in dict.fromkeys(lost.reason for lost in found.lost):
        yield f"# - {reason}:"
        yield _wrapped([f"{x.key}={x.value}" for x in found.lost if x.reason == reason])
    yield from (f"# - {line}" for line in unread)


def _wrapped(words: Sequence[str]) -> str:
    """Return words on lines of at most 100 columns, as a comment."""
    return textwrap.fill(
        ", ".join(words),
        width=100,
        initial_indent="#     ",
        subsequent_indent="#     ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _check(found: Converted) -> int:
    """Compose the options; 1 and one line when they do not fit together."""
    from rlkit.config import ConfigError
    from rlkit.launch.composing import register
    from rlkit.launch.preflight import preflight

    register()
    try:
        preflight([word for word in found.words if not word.startswith("run_dir=")])
    except ConfigError as error:
        print(f"rlkit: these options do not fit together yet: {error}", file=sys.stderr)
        return 1
    return 0
