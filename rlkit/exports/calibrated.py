"""Write a whole model in 4-bit integers that GPTQ or AWQ chose, with rows of the run itself.

llmcompressor does it, in a process of its own. The rows are training prompts of the task with the
policy's own answers, so that what is kept best is what the policy computes with.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from rlkit.exports import calibrate_child
from rlkit.exports.child import ask_child
from rlkit.exports.compressed import check_groups
from rlkit.exports.hf_folder import write_beside, write_config, write_merged16
from rlkit.exports.trained import TrainedPolicy
from rlkit.runtime.distribution import how_to_install

CALIBRATED = ("gptq", "awq")
NUM_ROWS = 128
"""Rows that are read, as many as the papers of GPTQ and AWQ read."""
_LOOK = "from importlib.util import find_spec; raise SystemExit(find_spec('llmcompressor') is None)"


def require_llmcompressor(asked_by: str, python: Path) -> None:
    """Raise ValueError, with the command that helps, unless `python` has llmcompressor."""
    try:
        found = subprocess.run(
            [str(python), "-P", "-c", _LOOK], capture_output=True, check=False
        ).returncode
    except OSError as error:
        raise ValueError(
            f"--calibrator must be a Python of 3.11 or newer, got {python} ({error.strerror})"
        ) from error
    if found != 0:
        raise ValueError(
            f"{asked_by} must have llmcompressor ({how_to_install('llmcompressor')} into a "
            f"virtual environment of its own, and --calibrator ITS/bin/python), got {python} "
            "without it"
        )


def write_calibrated(
    folder: Path,
    trained: TrainedPolicy,
    rows: Sequence[Sequence[int]],
    *,
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    python: Path,
) -> None:
    """Write the merged model in 4-bit integers with GPTQ or AWQ; `folder` must exist.

    Args:
        folder: The folder of the model.
        trained: The trained policy.
        rows: Token ids of texts to calibrate with.
        name: The format, `gptq` or `awq`.
        dtype: The dtype of what is not quantised.
        device: A CPU keeps llmcompressor off the cards.
        python: The Python that has llmcompressor.

    Raises:
        ValueError: llmcompressor cannot quantise this model; one line.
    """
    merged, made = folder / "merged", folder / "made"
    merged.mkdir()
    try:
        write_merged16(merged, trained, dtype=dtype)
        answer = ask_child(
            [str(python), "-P", str(Path(calibrate_child.__file__))],
            {
                "model": str(merged),
                "out": str(made),
                "allow_remote_code": trained.run.model.allow_remote_code,
                "method": name,
                "group_size": check_groups(trained, name),
                "rows": [list(row) for row in rows],
            },
            rule=f"llmcompressor must quantise the model for --to {name}",
            environment={"CUDA_VISIBLE_DEVICES": ""} if device.type == "cpu" else {},
        )
        for file in made.glob("*.safetensors*"):
            shutil.move(file, folder / file.name)
    finally:
        for scratch in (merged, made):
            shutil.rmtree(scratch, ignore_errors=True)
    write_config(folder, trained, dtype=dtype, quantization=answer["quantization_config"])
    write_beside(folder, trained)
