"""Sweeps on a Ray cluster of two nodes: a node that dies, a driver that is killed or stopped."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.disturbed_sweep import Metrics, Sweep, ended
from cluster.ray_here import NODES, Ray, cluster, missing

from rlkit.tracking.holding import is_held

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=f"no Ray here: {missing()}"),
]
_ENDED_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def ray() -> Iterator[Ray]:
    with cluster() as running:
        yield running


@pytest.fixture
def sweep(ray: Ray, tmp_path: Path) -> Sweep:
    ray.mend()
    engine = ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={ray.address}"]
    return Sweep(tmp_path / "sweep", *engine, environ=ray.environ, nap=0.5)


def finishes(sweep: Sweep, truth: Metrics, *more: str, left: int) -> None:
    """The same command does what is missing, and nothing twice."""
    before = sweep.stamps()
    assert f"{left} to run" in sweep.run(*more)
    assert sweep.done() == [0, 1] and sweep.metrics() == truth
    after = sweep.stamps()
    assert {path: after[path] for path in before} == before


def test_a_sweep_runs_on_both_nodes(sweep: Sweep, truth: Metrics) -> None:
    assert "2 done" in sweep.run() and sweep.metrics() == truth
    assert {sweep.status(seed)["host"] for seed in (0, 1)} == set(NODES)
    assert "2 done before" in sweep.run()


def test_the_job_of_a_node_that_loses_power_goes_on_elsewhere(
    ray: Ray, sweep: Sweep, truth: Metrics
) -> None:
    launcher = sweep.start("checkpoint.every=5")
    sweep.until(lambda: min(sweep.step(0), sweep.step(1)) > 6, launcher)
    assert {sweep.status(seed)["host"] for seed in (0, 1)} == set(NODES)
    ray.kill_node(NODES[1])
    assert "2 done" in ended(launcher, 0)
    assert sweep.metrics() == truth
    assert {sweep.status(seed)["host"] for seed in (0, 1)} == {NODES[0]}
    assert sorted(len(sweep.starts(seed)) for seed in (0, 1)) == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_jobs_end_with_their_driver_and_the_same_command_goes_on(
    sweep: Sweep, truth: Metrics, number: signal.Signals
) -> None:
    launcher = sweep.start("checkpoint.every=5")
    sweep.until(lambda: min(sweep.step(0), sweep.step(1)) > 6, launcher)
    launcher.send_signal(number)
    launcher.communicate()
    give_up = time.monotonic() + _ENDED_WITHIN_S
    while any(is_held(job) for job in sweep.jobs().values()):
        assert time.monotonic() < give_up
        time.sleep(0.2)
    assert sweep.done() == []
    finishes(sweep, truth, "checkpoint.every=5", left=2)
