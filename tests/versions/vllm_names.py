"""Private names of vLLM for CUDA, looked up in the source of its wheels: no GPU is needed."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

CHECK = "rlkit.generation.vllm.compat.check"


class Names(NamedTuple):
    """Features of the vLLM generator by whether a release has all the names that they need."""

    found: list[str]
    missing: list[str]


def can_look_up() -> bool:
    """Whether this checkout has the tables of names."""
    try:
        return importlib.util.find_spec(CHECK) is not None
    except ModuleNotFoundError:
        return False


def look_up(version: str, folder: Path) -> Names:
    """Read the source of vLLM `version`, downloaded into `folder` unless it is there."""
    check = importlib.import_module(CHECK)
    features = importlib.import_module("rlkit.generation.vllm.compat.features")
    root = _source(version, folder / f"vllm-source-{version}")
    missing = check.look_up(version, root=root).missing
    names = {feature: str(feature.value) for feature in features.Feature}
    return Names(
        found=[name for feature, name in names.items() if feature not in missing],
        missing=[name for feature, name in names.items() if feature in missing],
    )


def _source(version: str, folder: Path) -> Path:
    if not (folder / "complete").exists():
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch]
            # The wheel for Linux, whatever this machine's version of glibc.
            platforms = ("2_28", "2_31", "2_34", "2_35")
            tags = [f"--platform=manylinux_{p}_x86_64" for p in platforms]
            command += ["--only-binary=:all:", *tags, f"vllm=={version}"]
            subprocess.run(command, check=True)
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                names = [n for n in archive.namelist() if n.endswith(".py")]
                archive.extractall(folder, names)
        (folder / "complete").touch()
    return folder / "vllm"
