"""Sweeps on a Slurm cluster of two nodes, disturbed in the ways that clusters disturb jobs."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_process import command
from cluster.disturbed_sweep import STEPS, Metrics, Sweep, ended
from cluster.slurm_here import NODES, Slurm, cluster, missing

from rlkit.tracking import read_metrics

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=f"no Slurm here: {missing()}"),
]
ENGINE = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1"]
LONG = "hydra.launcher.timeout_min=10"
SHORT = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # the names of sockets are short
    with cluster(folder / "here") as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture
def sweep(slurm: Slurm, tmp_path: Path) -> Sweep:
    slurm.mend()
    return Sweep(tmp_path / "sweep", *ENGINE, environ=slurm.environ, nap=0.5)


def finishes(sweep: Sweep, truth: Metrics, *more: str, left: int) -> None:
    """The same command does what is missing, and nothing twice."""
    before = sweep.stamps()
    output = sweep.run(LONG, *more)
    assert f"{left} to run" in output if left else "to run" not in output, output
    assert sweep.done() == [0, 1] and sweep.metrics() == truth
    after = sweep.stamps()
    assert {path: after[path] for path in before} == before
    assert "2 done before" in sweep.run(LONG, *more)


def test_a_sweep_runs_on_both_nodes_and_its_jobs_are_recorded(
    slurm: Slurm, sweep: Sweep, truth: Metrics
) -> None:
    output = sweep.run(LONG, "algorithm.nap=0", "hydra.launcher.cpus_per_task=2")
    assert "submitted to Slurm: squeue -j" in output
    statuses = [sweep.status(seed) for seed in (0, 1)]
    assert {status["host"] for status in statuses} == set(NODES)
    number = min(statuses[0]["cluster_job"].removeprefix("Slurm job ").split("_"))
    assert {status["cluster_job"].rpartition("_")[2] for status in statuses} == {"0", "1"}
    assert number.isdigit() and sweep.metrics() == truth


def test_a_job_out_of_time_saves_and_slurm_runs_it_again(sweep: Sweep, truth: Metrics) -> None:
    output = sweep.run(*SHORT, "hydra.launcher.max_num_timeout=5", "algorithm.nap=1.0")
    assert "2 done" in output and sweep.metrics() == truth
    assert all(len(sweep.starts(seed)) >= 2 for seed in (0, 1))


def test_a_job_out_of_time_that_is_not_to_run_again_saves(sweep: Sweep, truth: Metrics) -> None:
    output = sweep.run(*SHORT, "algorithm.nap=1.0", code=130)
    assert "2 interrupted" in output
    for seed in (0, 1):
        status = sweep.status(seed)
        assert status["status"] == "interrupted" and "after step" in status["message"]
        assert len(list(sweep.jobs()[seed].glob("checkpoints/step-*"))) == 1
    finishes(sweep, truth, "algorithm.nap=1.0", left=2)


def test_a_cancelled_job_saves_and_the_other_goes_on(
    slurm: Slurm, sweep: Sweep, truth: Metrics
) -> None:
    launcher = sweep.start(LONG)
    sweep.until(lambda: sweep.step(0) > 3 and sweep.step(1) > 0, launcher)
    slurm.ask("scancel", sweep.status(0)["cluster_job"].removeprefix("Slurm job "))
    output = ended(launcher, 130)
    assert "1 done" in output and "1 interrupted" in output
    status = sweep.status(0)
    assert status["status"] == "interrupted" and "after step" in status["message"]
    assert sweep.done() == [1]
    finishes(sweep, truth, left=1)


def test_jobs_of_a_node_that_loses_power_go_on_elsewhere(
    slurm: Slurm, sweep: Sweep, truth: Metrics
) -> None:
    launcher = sweep.start(LONG, "checkpoint.every=5")
    sweep.until(lambda: min(sweep.step(0), sweep.step(1)) > 6, launcher)
    slurm.kill_node(sweep.status(0)["host"])
    output = ended(launcher, 0)
    assert "2 done" in output and sweep.metrics() == truth
    assert len({line.split()[3] for line in sweep.starts(0)}) == 2, sweep.starts(0)


def test_a_node_that_is_cut_off_and_works_on_is_waited_for(
    slurm: Slurm, sweep: Sweep, truth: Metrics
) -> None:
    launcher = sweep.start(LONG, "algorithm.nap=1.0")
    sweep.until(lambda: min(sweep.step(0), sweep.step(1)) > 3, launcher)
    slurm.cut_off(sweep.status(0)["host"])
    output = ended(launcher, 0)
    assert "2 done" in output and sweep.metrics() == truth
    assert len(sweep.starts(0)) == 1  # the job that Slurm started again found nothing left


def test_a_launcher_that_is_killed_leaves_its_jobs_and_the_next_one_watches_them(
    slurm: Slurm, sweep: Sweep, truth: Metrics
) -> None:
    launcher = sweep.start(LONG, "algorithm.nap=2.5")
    sweep.until(lambda: min(sweep.step(0), sweep.step(1)) > 3, launcher)
    launcher.send_signal(signal.SIGKILL)
    launcher.communicate()
    output = sweep.run(LONG, "algorithm.nap=2.5")
    assert "2 running" in output and "2 done" in output
    assert sweep.metrics() == truth and all(len(sweep.starts(seed)) == 1 for seed in (0, 1))


def test_ctrl_c_ends_the_watching_and_not_the_jobs(sweep: Sweep) -> None:
    launcher = sweep.start(LONG)
    sweep.until(lambda: min(sweep.step(0), sweep.step(1)) > 3, launcher)
    launcher.send_signal(signal.SIGINT)
    assert "the jobs go on in Slurm: squeue -j" in ended(launcher, 130)
    assert "2 done" in sweep.run(LONG)


def test_a_job_that_makes_room_for_an_urgent_one_runs_again(
    slurm: Slurm, sweep: Sweep, truth: Metrics
) -> None:
    launcher = sweep.start(LONG, "hydra.launcher.cpus_per_task=2")
    sweep.until(lambda: min(sweep.step(0), sweep.step(1)) > 3, launcher)
    host = sweep.status(0)["host"]
    slurm.ask("sbatch", "-p", "urgent", "-w", host, "-c", "2", "--wrap", "sleep 5", "-o/dev/null")
    output = ended(launcher, 0)
    assert "2 done" in output and sweep.metrics() == truth
    assert len(sweep.starts(0)) == 2 and len(sweep.starts(1)) == 1


def test_a_cluster_without_accounts_does_not_keep_the_launcher_waiting(
    slurm: Slurm, sweep: Sweep, truth: Metrics
) -> None:
    with slurm.without_accounts():
        launcher = sweep.start(LONG)
        sweep.until(lambda: min(sweep.step(0), sweep.step(1)) > 3, launcher)
        for seed in (0, 1):
            slurm.ask("scancel", sweep.status(seed)["cluster_job"].removeprefix("Slurm job "))
        assert "2 interrupted" in ended(launcher, 130)
    finishes(sweep, truth, left=2)


def test_a_single_run_in_a_script_of_ones_own_is_queued_until_it_is_complete(
    slurm: Slurm, sweep: Sweep, tmp_path: Path
) -> None:
    run, script = tmp_path / "run", tmp_path / "job.sh"
    words = [*sweep.single, "algorithm.nap=1.0", f"run_dir={run}", "resume=auto"]
    script.write_text(
        f"#!/bin/bash\nsrun {shlex.join(command(*words))}\n"
        'if [ $? -eq 130 ]; then scontrol requeue "$SLURM_JOB_ID"; fi\n'
    )
    options = ["--time=1", "--signal=USR1@10", "--requeue", f"--output={tmp_path / 'out'}"]
    assert slurm.ask("sbatch", "--open-mode=append", *options, str(script))
    sweep.until(lambda: slurm.ask("squeue", "--noheader") == "done", None)
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "completed", (tmp_path / "out").read_text()
    assert len(read_metrics(run)) == STEPS
    assert (tmp_path / "out").read_text().count("SIGUSR1 after step") >= 1


def test_what_slurm_refuses_is_one_line(sweep: Sweep) -> None:
    output = sweep.run(LONG, "hydra.launcher.partition=none", code=2)
    (line,) = [line for line in output.splitlines() if line.startswith("rlkit: ")]
    assert "Slurm took no job of the sweep" in line and "partition" in line
