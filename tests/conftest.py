"""Shared set-up: shape annotations become checks, and one CPU thread keeps the suite fast."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from folder_seconds import FolderSeconds
from jaxtyping import install_import_hook
from warm_cli import Forks

# Before anything imports rlkit: jaxtyping turns `Float[Tensor, "B C"]` into a check of dtype, rank
# and of equal sizes of equal letters across the arguments of a call.
install_import_hook(
    [
        "rlkit.types",
        "rlkit.functional",
        "rlkit.algorithms",
        "rlkit.training.collate",
        "rlkit.training.microbatch",
    ],
    "beartype.beartype",
)

if "OMP_NUM_THREADS" not in os.environ:  # torch has read it otherwise
    torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Print the seconds of every folder after the run, but not in the workers of xdist."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(FolderSeconds(), "folder-seconds")


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Starts the command line without its start."""
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: workers take whole files, and none should be left with a long
    one at the end. Without a CUDA device, tests marked gpu cannot run."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
