"""What a sweep is made of: plans, names, packed configurations, rows, outcomes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import initialize_config_module
from omegaconf import OmegaConf

from rlkit import cli
from rlkit.config import Config, ConfigError, Resume, flatten
from rlkit.launch.composing import Composer, compose_job, register
from rlkit.launch.outcome import JobState, cause_of_death, last_line, settle, state_of
from rlkit.launch.packed import pack, unpack
from rlkit.launch.preflight import plan
from rlkit.launch.rows import JobRow, JobStatus, labels, seconds_left
from rlkit.launch.run_folder import write_status
from rlkit.launch.settings import IsolatedConfig
from rlkit.launch.sweep import sweep_folder_of
from rlkit.launch.sweep_folder import (
    Job,
    Place,
    hold,
    job_id,
    place_in_sweep,
    read_sweep,
    sweep_name,
    write_sweep,
)
from rlkit.tracking import Status

SWEEP = ["-m", "kl=none,reverse_k3", "seed=0,1", "optim.learning_rate=0.01"]


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    monkeypatch.chdir(tmp_path)


def jobs_of(*arguments: str) -> list[Job]:
    return plan(["-m", *arguments]).jobs


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=3"],
        ["kl=forward_exact", "seed=3", "kl.beta=0.5", "algorithm=ppo"],
        ["kl.beta=0.5", "kl=reverse_k1"],
        ["model=tabular", "seed=7", "algorithm=rloo"],
        ["+reward.functions.short.fn=cosine_length", "reward=exact", "steps=7"],
    ],
    ids=" ".join,
)
def test_shared_compositions_are_those_of_hydra(overrides: list[str]) -> None:
    with initialize_config_module("rlkit.conf", version_base="1.3"):
        composer = Composer()
        composer(["seed=1", "kl.beta=0.7"])  # a job before it must leave nothing behind
        ours, hydras = composer(overrides), compose_job(overrides)
        again = composer(overrides)
    for config in (ours, hydras, again):
        config.run_dir = "the same"
    assert OmegaConf.to_yaml(ours, resolve=True) == OmegaConf.to_yaml(hydras, resolve=True)
    assert again == ours


def test_a_plan_knows_its_jobs() -> None:
    found = plan([*SWEEP, "hydra.launcher.jobs=3"])
    assert [job.overrides for job in found.jobs] == [
        (f"kl={kl}", f"seed={seed}", "optim.learning_rate=0.01")
        for kl in ("none", "reverse_k3")
        for seed in (0, 1)
    ]
    assert len({job.id for job in found.jobs}) == 4
    assert labels(found.jobs)[1] == "kl=none seed=1"
    assert found.hydra is not None
    assert OmegaConf.to_object(found.hydra.launcher) == IsolatedConfig(jobs=3)
    assert found.hydra_overrides == ("hydra.launcher.jobs=3",)


def test_jobs_with_one_configuration_are_one_job() -> None:
    assert len(jobs_of("seed=0,0,1")) == 2
    assert len(jobs_of("kl.beta=0.04,0.040")) == 1


def test_an_id_is_of_what_makes_runs_differ() -> None:
    (job,) = jobs_of("seed=0")
    config = job.config
    moved = replace(config, run_dir="elsewhere", resume=Resume.auto)
    assert job_id(moved) == job.id
    assert job_id(jobs_of("seed=0", "tracker.plot=false")[0].config) == job.id
    for change in ("seed=1", "steps=13", "memory.tokens_per_microbatch=64", "kl.beta=0.041"):
        assert jobs_of(change)[0].id != job.id


def test_a_sweep_is_named_by_its_set_of_jobs() -> None:
    one, other = jobs_of("seed=0,1"), jobs_of("seed=1,0")
    assert [j.id for j in one] == [j.id for j in reversed(other)]
    assert sweep_name("echo", one) == sweep_name("echo", other)
    assert sweep_name("echo", one) != sweep_name("echo", one[:1])
    found = plan(["-m", "seed=0,1"])
    assert sweep_folder_of(found) == Path("sweeps") / sweep_name("echo", one)
    chosen = plan(["-m", "seed=0,1", "hydra.sweep.dir=here"])
    assert sweep_folder_of(chosen) == Path("here")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.launcher.jobs=-1", "hydra.launcher.jobs must be >= 0, got -1"),
        ("hydra.launcher.jobs_per_gpu=0", "hydra.launcher.jobs_per_gpu must be >= 1, got 0"),
        ("hydra.launcher.grace_seconds=0", "hydra.launcher.grace_seconds must be > 0, got 0"),
        ("hydra.launcher.retry=true", "hydra.launcher.retry is not an option"),
        ("hydra.launcher.start=hot", "auto, warm, fresh"),
        ("hydra/launcher=isolate", "hydra/launcher must be one of"),
    ],
)
def test_bad_launcher_options_are_one_line_and_nothing_written(
    tmp_path: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["-m", "seed=0,1", override]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_extended_sweep_keeps_its_jobs() -> None:
    sweep = Path("sweep")
    first, second = jobs_of("seed=0,1"), jobs_of("seed=1,2")
    write_sweep(sweep, name="x", command=["rlkit", "-m", "api_key=hunter22"], jobs=first)
    created = read_sweep(sweep)["created"]
    write_sweep(sweep, name="x", command=["rlkit", "-m", "seed=1,2"], jobs=second)
    record = read_sweep(sweep)
    assert record["created"] == created
    assert [job["overrides"] for job in record["jobs"]] == [["seed=0"], ["seed=1"], ["seed=2"]]
    assert record["command"] == ["rlkit", "-m", "seed=1,2"]
    (earlier,) = record["earlier_commands"]
    assert earlier[:2] == ["rlkit", "-m"] and "hunter22" not in earlier[2]
    write_sweep(sweep, name="x", command=["rlkit", "-m", "seed=1,2"], jobs=second)
    assert read_sweep(sweep) == record
    write_sweep(sweep, name="x", command=["rlkit", "-m", "seed=3"], jobs=second)
    assert read_sweep(sweep)["earlier_commands"] == [earlier, record["command"]]
    (sweep / "sweep.json").write_text("{")
    with pytest.raises(ConfigError, match=r"sweep\.json cannot be read"):
        read_sweep(sweep)


def test_secrets_stay_out_of_the_record() -> None:
    write_sweep(Path("s"), name="x", command=["rlkit", "hub.token=hunter22"], jobs=[])
    assert "hunter22" not in Path("s/sweep.json").read_text()


def test_one_launcher_a_sweep() -> None:
    with (
        hold(Path("sweep")),
        pytest.raises(ConfigError, match="is being run by another process"),
        hold(Path("sweep")),
    ):
        pass
    with hold(Path("sweep")):
        pass


def config_of(*overrides: str) -> Config:
    return jobs_of(*overrides)[0].config


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=0"],
        ["algorithm=ppo", "kl=forward_exact", "ratio=gspo"],
        ["model=tabular", "algorithm=online_dpo"],
        ["+reward.functions.short.fn=cosine_length", "+reward.functions.short.weight=0.5"],
        ["tracker=wandb", "task=chain_sum", "memory=unsplit"],
    ],
    ids=" ".join,
)
def test_a_packed_configuration_comes_back_equal(overrides: list[str]) -> None:
    config = replace(config_of(*overrides), run_dir="run")
    back = unpack(pack(config))
    assert back == config
    assert type(back.algorithm) is type(config.algorithm)
    assert flatten(back) == flatten(config)


def test_states_of_a_job() -> None:
    job = Path("job")
    job.mkdir()
    assert state_of(job) is JobState.new
    write_status(job, Status.running, message="")
    assert state_of(job) is JobState.partial
    write_status(job, Status.interrupted, message="")
    assert state_of(job) is JobState.partial
    write_status(job, Status.failed, message="")
    assert state_of(job) is JobState.failed
    (job / "status.json").write_text('{"status": "comp')
    assert state_of(job) is JobState.new
    write_status(job, Status.completed, message="")
    assert state_of(job) is JobState.done
    assert (job / "DONE").exists()


def test_a_silent_death_gets_a_reason_and_an_outcome_is_kept() -> None:
    job = Path("job")
    job.mkdir()
    write_status(job, Status.running, message="")
    recorded = settle(job, pid=os.getpid(), otherwise=Status.failed, message="killed by SIGKILL")
    assert recorded.status is Status.failed
    saved = json.loads((job / "status.json").read_text())
    assert (saved["status"], saved["message"]) == ("failed", "killed by SIGKILL")
    write_status(job, Status.failed, message="RuntimeError: its own words")
    recorded = settle(job, pid=os.getpid(), otherwise=Status.interrupted, message="stopped")
    assert (recorded.status, recorded.message) == (Status.failed, "RuntimeError: its own words")
    # Somebody else's outcome is not this process's.
    recorded = settle(job, pid=os.getpid() + 1, otherwise=Status.interrupted, message="stopped")
    assert recorded.status is Status.interrupted


def test_causes_of_death() -> None:
    job = Path("job")
    job.mkdir()
    assert cause_of_death(job, -9) == "killed by SIGKILL, perhaps for want of memory"
    assert cause_of_death(job, -11) == "killed by SIGSEGV"
    assert cause_of_death(job, 3) == "exit code 3"
    (job / "output.txt").write_text("hello\nrlkit: steps must be >= 1, got 0\n\n")
    assert cause_of_death(job, 2) == "exit code 2: steps must be >= 1, got 0"
    assert last_line(Path("nothing")) == ""


def test_time_left_is_that_of_the_finished_jobs() -> None:
    def row(status: JobStatus, seconds: float = 0.0) -> JobRow:
        return JobRow(label="", folder=Path(), steps=1, status=status, seconds=seconds)

    waiting = [row(JobStatus.waiting) for _ in range(4)]
    assert seconds_left(waiting, slots=2) is None
    assert seconds_left([row(JobStatus.earlier, 9.0), *waiting], slots=2) is None
    rows = [
        row(JobStatus.done, 10.0),
        row(JobStatus.done, 20.0),
        row(JobStatus.failed, 1.0),
        *waiting,
    ]
    assert seconds_left(rows, slots=2) == 4 * 15.0 / 2
    assert seconds_left(rows, slots=100) == 15.0


def test_a_job_knows_its_sweep_and_what_tells_it_from_the_others(tmp_path: Path) -> None:
    jobs = jobs_of(*SWEEP[1:])
    sweep = tmp_path / "mine"
    write_sweep(sweep, name="kl-1a2b", command=["rlkit", *SWEEP], jobs=jobs)
    places = [place_in_sweep(sweep / "jobs" / job.id) for job in jobs]
    assert {place.group for place in places} == {"kl-1a2b"}
    assert {place.title for place in places} == {
        "kl=none seed=0",
        "kl=none seed=1",
        "kl=reverse_k3 seed=0",
        "kl=reverse_k3 seed=1",
    }
    assert place_in_sweep(tmp_path / "runs" / "x") == Place("", "")
    assert place_in_sweep(sweep / "jobs" / "stranger") == Place("", "")


def test_a_folder_with_a_name_that_no_file_system_takes_is_one_line(tmp_path: Path) -> None:
    match = r"hydra.sweep.dir must be .* got .*a.x00b"
    with pytest.raises(ConfigError, match=match), hold(tmp_path / "a\0b"):
        pass
