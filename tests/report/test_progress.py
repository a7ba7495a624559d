"""The live page names a running job by what sets it apart from the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rlkit.report.job import JobRecord, State
from rlkit.report.progress import progress_of


def job(*overrides: str, state: State = State.running) -> JobRecord:
    steps = {
        "step": np.arange(3.0),
        "reward": np.array([0.0, 0.5, 1.0]),
        "time/step": np.full(3, 2.0),
    }
    return JobRecord(
        id="a1",
        folder=Path("x"),
        overrides=overrides,
        state=state,
        config={"steps": 12},
        steps=steps,
    )


def test_a_name_leaves_out_what_all_jobs_share() -> None:
    shared = ("task=max_of_n", "steps=12")
    jobs = [
        job(*shared, "algorithm=grpo", "seed=0"),
        job(*shared, "algorithm=rloo", "seed=0", state=State.completed),
        job(*shared, "algorithm=rloo", "seed=1"),
    ]
    found = progress_of(jobs)
    assert [p.name for p in found] == ["algorithm=grpo seed=0", "algorithm=rloo seed=1"]
    assert [(p.done, p.total, p.reward, p.left) for p in found] == [(3, 12, "0.500", "18.0 s")] * 2


def test_a_job_alone_has_all_of_its_overrides_and_one_without_any_its_id() -> None:
    assert progress_of([job("task=echo", "seed=3")])[0].name == "task=echo seed=3"
    assert progress_of([job(), job()])[0].name == "a1"
