"""Ask a library in a child process, which may crash or keep memory without harm to the parent.

Questions and answers are JSON files. A child is a module that is called with their two paths.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WAIT_S = 3600.0
"""Seconds that a child may take."""


def ask_child(
    command: Sequence[str],
    question: Mapping[str, Any],
    *,
    rule: str,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Run a child with the paths of its question and its answer, and return the answer.

    Args:
        command: The program and its arguments, to which the two paths are added.
        question: What is written for the child, as JSON.
        rule: The subject and the rule of a refusal, such as `vLLM must load the folder`.
        environment: Variables for the child beside those of this process.

    Returns:
        What the child wrote, from JSON.

    Raises:
        ValueError: The child failed, wrote nothing or took too long; with its last telling line.
    """
    with tempfile.TemporaryDirectory(prefix="rlkit-child-") as scratch:
        asked, answer = Path(scratch) / "in.json", Path(scratch) / "out.json"
        asked.write_text(json.dumps(question))
        try:
            done = subprocess.run(
                [*command, str(asked), str(answer)],
                env={**os.environ, **(environment or {})},
                capture_output=True,
                text=True,
                check=False,
                timeout=WAIT_S,
                errors="replace",
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(
                f"{rule} within {WAIT_S:.0f} s (--prompts makes it less work), got no answer"
            ) from error
        if done.returncode != 0 or not answer.is_file():
            told = telling_line(done.stdout + done.stderr)
            raise ValueError(f"{rule}, got exit code {done.returncode}: {told}")
        return json.loads(answer.read_text())


def telling_line(output: str) -> str:
    """Return the last line that names an error, or the last one at all, of at most 300 characters.

    Advice of pydantic and of Python's tracebacks is passed over.
    """
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() and "errors.pydantic" not in line]
    telling = errors or lines or ["no word"]
    return " ".join(telling[-1].split())[:300]
