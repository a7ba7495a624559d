"""What the report reads: states of jobs, variants, panels, pairs; nothing makes it fail."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import numpy as np
import pytest
from made_up_sweep import write_run, write_sweep

from rlkit.report.arms import arms_of, panels_of, pick_baseline
from rlkit.report.environment import environment
from rlkit.report.job import State, read_job
from rlkit.report.load import StudyError, StudyKind, load_sides, load_study
from rlkit.tracking import Status


def test_every_state_of_a_job_is_told_apart(sweep: Path) -> None:
    study = load_study([sweep])
    assert study.kind is StudyKind.sweep and study.name == "kl_detach"
    assert study.command == "rlkit -m kl=reverse_k3,none seed=range(5)"
    assert environment(study)["command"] == [study.command]
    states = [job.state for job in study.jobs[20:]]
    assert states == [
        State.completed,
        State.failed,
        State.running,
        State.interrupted,
        State.missing,
    ]
    assert study.jobs[21].message == "OutOfMemoryError: <script>alert(1)</script> & co"
    assert study.jobs[24].seed == 4 and study.jobs[24].overrides[0] == "kl=reverse_k1_reward"


def test_secrets_of_a_configuration_are_not_read(sweep: Path) -> None:
    job = load_study([sweep]).jobs[0]
    assert job.config["model.hub_token"] == "***"
    assert job.config["kl.beta"] == 0.04


def test_a_run_that_nobody_holds_any_more_was_broken_off(tmp_path: Path) -> None:
    write_run(tmp_path / "run", seed=0, final=0.9, status=Status.running, steps=3, evals=(0,))
    job = read_job(tmp_path / "run", job_id="x")  # a copy without the lock
    assert job.state is State.interrupted and "this is a copy" in job.message
    (tmp_path / "run" / ".lock").touch()
    job = read_job(tmp_path / "run", job_id="x")
    assert job.state is State.interrupted and "no process holds it" in job.message
    with (tmp_path / "run" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_job(tmp_path / "run", job_id="x").state is State.running


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("metrics.jsonl", "no json\n{}\n"),
        ("status.json", "[1]"),
        ("config.yaml", "a: [b"),
        ("evals.jsonl", '{"label": "before"}\n'),
    ],
)
def test_a_damaged_folder_is_reported_not_raised(tmp_path: Path, file: str, text: str) -> None:
    write_run(tmp_path / "run", seed=0, final=0.9, status=Status.failed)
    (tmp_path / "run" / file).write_text(text)
    job = read_job(tmp_path / "run", job_id="x")
    assert job.state is State.unreadable
    assert job.message


def test_samples_and_seconds_add_up_also_where_steps_were_not_logged(tmp_path: Path) -> None:
    write_run(tmp_path / "run", seed=0, final=0.9)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] in (0, 5, 10, 11)]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    steps = read_job(tmp_path / "run", job_id="x").steps
    np.testing.assert_allclose(steps["samples"], [48, 48 * 6, 48 * 11, 48 * 12])
    np.testing.assert_allclose(steps["seconds"], 17.58 * np.array([1, 6, 11, 12]))


def test_variants_are_what_differs_without_the_seed(sweep: Path) -> None:
    arms = arms_of(load_study([sweep]).jobs)
    assert [arm.variant for arm in arms] == [
        "kl=reverse_k3",
        "kl=unsloth_full_reverse",
        "kl=none",
        "ratio=no_detach",
        "kl=reverse_k1_reward",
    ]
    assert [arm.panel for arm in arms] == [""] * 5
    assert [sorted(arm.done) for arm in arms] == [[0, 1, 2, 3, 4]] * 4 + [[0]]


def grid(folder: Path, axes: list[list[str]]) -> Path:
    """A sweep of jobs that have not started."""
    jobs: list[list[str]] = [[]]
    for axis in axes:
        jobs = [[*job, choice] for job in jobs for choice in axis]
    write_sweep(folder, [(f"{i:012x}", job) for i, job in enumerate(jobs)])
    return folder


def test_the_one_number_of_a_grid_makes_panels_unless_told_otherwise(tmp_path: Path) -> None:
    axes = [["kl=a", "kl=b"], ["kl.beta=0.04", "kl.beta=2"], ["seed=0", "seed=1"]]
    jobs = load_study([grid(tmp_path / "s", axes)]).jobs
    panels = panels_of(arms_of(jobs))
    assert list(panels) == ["kl.beta=0.04", "kl.beta=2"]
    assert [arm.variant for arm in panels["kl.beta=2"]] == ["kl=a", "kl=b"]
    flat = arms_of(jobs, panel_keys=[])
    assert [arm.variant for arm in flat][:2] == ["kl=a, kl.beta=0.04", "kl=a, kl.beta=2"]
    assert list(panels_of(arms_of(jobs, panel_keys=["kl"]))) == ["kl=a", "kl=b"]
    with pytest.raises(StudyError, match=r"panel must be an option of the jobs, got kl\.bta"):
        arms_of(jobs, panel_keys=["kl.bta"])


def test_tasks_make_panels_and_variants_keep_their_style_across_them(tmp_path: Path) -> None:
    axes = [["task=echo", "task=rev_words"], ["algorithm=grpo", "algorithm=ppo"], ["seed=0"]]
    arms = arms_of(load_study([grid(tmp_path / "s", axes)]).jobs)
    assert [(a.panel, a.variant, a.style) for a in arms] == [
        ("task=echo", "algorithm=grpo", 0),
        ("task=echo", "algorithm=ppo", 1),
        ("task=rev_words", "algorithm=grpo", 0),
        ("task=rev_words", "algorithm=ppo", 1),
    ]


def test_all_numbers_of_a_grid_with_other_options_make_panels(tmp_path: Path) -> None:
    axes = [["kl=a", "kl=b"], ["kl.beta=0.1", "kl.beta=1"], ["epochs=1", "epochs=4"], ["seed=0"]]
    arms = arms_of(load_study([grid(tmp_path / "s", axes)]).jobs)
    assert len(arms) == 8 and {arm.variant for arm in arms} == {"kl=a", "kl=b"}
    assert list(panels_of(arms)) == [
        f"kl.beta={beta}, epochs={epochs}" for beta in ("0.1", "1") for epochs in (1, 4)
    ]


def test_panels_stand_in_the_order_of_their_numbers_and_name_the_task_that_nobody_chose(
    tmp_path: Path,
) -> None:
    jobs = []
    for i, (task, beta) in enumerate([("", "2"), ("", "0.4"), ("", "10"), ("rev_words", "0.4")]):
        job = [f"kl.beta={beta}", "seed=0", *([f"task={task}"] if task else [])]
        jobs.append((f"{i:012x}", job))
        name = {"name": task or "echo"}
        write_run(tmp_path / "jobs" / jobs[-1][0], seed=0, final=0.9, options={"task": name})
    write_sweep(tmp_path, jobs)
    arms = arms_of(load_study([tmp_path]).jobs, panel_keys=["task", "kl.beta"])
    assert list(panels_of(arms)) == [
        *(f"task=echo, kl.beta={beta}" for beta in ("0.4", "2", "10")),
        "task=rev_words, kl.beta=0.4",
    ]


def test_numbers_alone_make_no_panels(tmp_path: Path) -> None:
    axes = [["lora.rank=1", "lora.rank=4"], ["lr=1e-4", "lr=1e-3"], ["seed=0"]]
    arms = arms_of(load_study([grid(tmp_path / "s", axes)]).jobs)
    assert {arm.panel for arm in arms} == {""} and len(arms) == 4


def test_the_baseline_is_the_first_or_the_one_meant(sweep: Path) -> None:
    arms = arms_of(load_study([sweep]).jobs)
    assert pick_baseline(arms, None) == "kl=reverse_k3"
    assert pick_baseline(arms, "kl=none") == "kl=none"
    with pytest.raises(StudyError, match="baseline kl=nine is none of them; there are: kl=rev"):
        pick_baseline(arms, "kl=nine")


def test_part_of_a_name_is_enough_if_it_means_one(tmp_path: Path) -> None:
    axes = [["a=1", "a=2"], ["b=x", "b=y"], ["seed=0"]]
    arms = arms_of(load_study([grid(tmp_path / "s", axes)]).jobs, panel_keys=[])
    assert pick_baseline(arms, "b=y, a=1") == "a=1, b=y"
    with pytest.raises(StudyError, match="baseline b=y means 2 variants"):
        pick_baseline(arms, "b=y")


def test_plain_folders_are_sorted_by_their_configurations(tmp_path: Path) -> None:
    for name, seed, beta in (("one", 0, 0.1), ("two", 1, 0.1), ("three", 0, 0.4)):
        write_run(tmp_path / name, seed=seed, final=0.9, options={"kl": {"beta": beta}})
    study = load_study([tmp_path])
    assert study.kind is StudyKind.runs and study.folder == tmp_path
    arms = {arm.variant: sorted(arm.done) for arm in arms_of(study.jobs)}
    assert arms == {"kl.beta=0.1": [0, 1], "kl.beta=0.4": [0]}


def test_runs_that_agree_in_everything_are_kept_apart(tmp_path: Path) -> None:
    for name in ("first", "again"):
        write_run(tmp_path / name, seed=3, final=0.9)
    study = load_study([tmp_path / "first", tmp_path / "again"])
    assert study.folder is None
    assert [arm.variant for arm in arms_of(study.jobs)] == ["all runs", "all runs (again)"]


def test_sides_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    for name in ("a/run", "b/run"):
        write_run(tmp_path / name, seed=0, final=0.9)
    arms = arms_of(load_sides([tmp_path / "a" / "run", tmp_path / "b" / "run"]).jobs)
    assert [arm.variant for arm in arms] == ["a/run", "b/run"]


def test_what_cannot_be_reported_on_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudyError, match=r"there is no folder .*nowhere"):
        load_study([tmp_path / "nowhere"])
    with pytest.raises(StudyError, match=r"there is no run in .*empty"):
        load_study([tmp_path / "empty"])
    (tmp_path / "empty" / "sweep.json").write_text('{"version": 2, "jobs": []}')
    with pytest.raises(StudyError, match="has version 2, this rlkit reads 1"):
        load_study([tmp_path / "empty"])
    (tmp_path / "empty" / "sweep.json").write_text('{"version": 1')
    with pytest.raises(StudyError, match=r"sweep\.json cannot be read"):
        load_study([tmp_path / "empty"])


def test_commands_that_extended_a_sweep_are_all_told(sweep: Path) -> None:
    file = sweep / "sweep.json"
    record = json.loads(file.read_text())
    record["earlier_commands"] = [["rlkit", "-m", "seed=0"], ["rlkit", "-m", "seed=1"]]
    file.write_text(json.dumps(record))
    study = load_study([sweep])
    assert environment(study)["command"] == ["rlkit -m seed=0", "rlkit -m seed=1", study.command]
