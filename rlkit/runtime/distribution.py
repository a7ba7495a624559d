"""rlkit is installed under another name, because `rlkit` itself belongs to other projects.

The import is `rlkit`. PyPI's `rlkit` is a library of 2018, and one of the same name is installed
from its repository. Both write into a package that is spelled like ours.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

NAME = "rlkit-lm"
"""To be installed: `pip install rlkit-lm`."""
EXTRAS = {
    "vllm": "gpu",
    "triton": "gpu",
    "bitsandbytes": "quant",
    "math_verify": "math",
    "datasets": "data",
    "jsonschema": "json",
    "py3langid": "language",
    "reasoning_gym": "reasoning",
    "verifiers": "verifiers",
    "wandb": "wandb",
    "trackio": "trackio",
    "tensorboard": "tensorboard",
    "xllamacpp": "export",
    "peft": "export",
    "compressed_tensors": "export",
    "llmcompressor": "calibrate",
}
"""The optional modules that rlkit imports, and the extra that installs each."""
_SUMMARY = "Reinforcement learning of language models on one GPU"
"""Ours begins so, under the old name as well."""


def how_to_install(module: str) -> str:
    """Return the command that installs the optional `module`."""
    return f"pip install '{NAME}[{EXTRAS[module]}]'"


def lacks(module: str, importer: str) -> ImportError:
    """Return the error of one line for `importer`, which cannot be imported without `module`."""
    return ImportError(f"{importer} needs {module}: {how_to_install(module)}", name=module)


def other_project() -> str | None:
    """Return one line when another project that is called `rlkit` is installed here, else None."""
    for found in importlib.metadata.distributions(name="rlkit"):
        summary = found.metadata["Summary"] or "no summary"
        if summary.startswith(_SUMMARY):
            continue  # an older installation of ours
        where = Path(str(found.locate_file("")))
        return (
            f"another project called rlkit is installed in {where} ({found.version}: {summary}), "
            f"and Python may import it instead of {NAME}: pip uninstall rlkit, then install "
            f"{NAME} again"
        )
    return None
