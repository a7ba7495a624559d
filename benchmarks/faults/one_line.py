"""The judgement of a command that was given something bad: it worked, or one line says why not."""

from __future__ import annotations

import subprocess

_LONGEST = 1000


def badly_ended(done: subprocess.CompletedProcess[str], *, may_work: bool = True) -> str:
    """Return what is wrong with how a command ended; empty when nothing is."""
    if "Traceback" in done.stdout + done.stderr:
        return f"a traceback: {' '.join(done.stderr.split())[-300:]}"
    if done.returncode == 0:
        return "" if may_work else "it was taken"
    lines = [line for line in done.stderr.splitlines() if line.startswith("rlkit: ")]
    if done.returncode != 2 or len(lines) != 1:
        return f"exit {done.returncode}, {len(lines)} lines: {' '.join(done.stderr.split())[-300:]}"
    (line,) = lines
    if len(line) > _LONGEST or not line.isprintable():
        return f"a line of {len(line)} characters: {line[:200]!r}"
    return ""


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Return the line with which a command refused; empty without one."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("rlkit: ")]
    return lines[0] if lines else ""
