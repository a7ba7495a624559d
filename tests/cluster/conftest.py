"""Sweeps on both clusters are compared with one that nobody disturbs."""

from __future__ import annotations

import pytest
from cluster.disturbed_sweep import STEPS, Metrics, Sweep


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    """The metrics of the jobs that nobody disturbs, on this machine."""
    sweep = Sweep(tmp_path_factory.mktemp("truth") / "sweep", environ={}, nap=0.0)
    sweep.run()
    found = sweep.metrics()
    assert [len(found[seed]) for seed in (0, 1)] == [STEPS, STEPS]
    return found
