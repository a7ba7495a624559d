"""`rlkit export` writes the model that a run trained as one Hugging Face folder without adapter."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

SUMMARY = "write what a run trained as one Hugging Face model, the adapter merged"


def run(arguments: Sequence[str]) -> int:
    """Write the folder, load it again and say how far it is from the run's policy."""
    from rlkit.cli import UsageError
    from rlkit.models.config import DType

    dtypes = [dtype.value for dtype in DType if dtype is not DType.auto]
    parser = argparse.ArgumentParser(prog="rlkit export", description=SUMMARY)
    parser.add_argument("--run", type=Path, required=True, help="a run's folder")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--dtype", choices=dtypes, default=DType.bf16.value, help="of the weights")
    options = parser.parse_args(arguments)
    # After the arguments: `--help` must not wait for torch and transformers.
    from rlkit.cli.export_run import export

    try:
        export(options.run, options.out, DType(options.dtype))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return 0
