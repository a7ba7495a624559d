"""Completions of a model cannot steer the terminal that shows them."""

from __future__ import annotations

from pathlib import Path

from cli_process import RunCLI

from rlkit.schema import is_control


def test_generated_bytes_do_not_reach_the_terminal(model_folder: Path, rlkit: RunCLI) -> None:
    """A random model over bytes writes escape characters; what is shown has symbols for them."""
    result = rlkit("generate", "--model", str(model_folder), "--max-tokens=200", "-n", "4", "hi")
    assert result.returncode == 0, result.stderr
    assert not any(map(is_control, result.stdout))
    assert any("\u2400" <= character <= "\u241f" for character in result.stdout)
