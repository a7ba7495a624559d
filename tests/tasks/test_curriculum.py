"""A curriculum draws parts by p (1 - p), the same after a resume, and each example by number."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from rlkit.tasks import Task, build_task
from rlkit.tasks.more_config import CurriculumKind, MixConfig
from rlkit.training.curriculum import success_after

PARTS: dict[str, Any] = {
    "easy": {"name": "max_of_n", "n": 2, "eval_size": 4},
    "hard": {"name": "max_of_n", "n": 8, "eval_size": 4, "weight": 2},
}


def mixture(**options: Any) -> Task:
    config = MixConfig(
        parts=PARTS,
        max_completion_length=8,
        curriculum=CurriculumKind.success,
        **options,
    )
    return build_task(config)


def test_shares_by_hand() -> None:
    """Weights 1 and 2; success .9 and .5: 4 x .09 = .36 and 2 x 1, of 2.36 in all."""
    curriculum = mixture().curriculum
    assert curriculum is not None
    found = curriculum.shares({"easy": 0.9, "hard": 0.5})
    assert found == pytest.approx({"easy": 0.36 / 2.36, "hard": 2 / 2.36})
    # Nobody knows yet: the weights decide. Never and always right: the floor.
    assert curriculum.shares({}) == pytest.approx({"easy": 1 / 3, "hard": 2 / 3})
    done = curriculum.shares({"easy": 1.0, "hard": 0.0})
    assert done == pytest.approx({"easy": 1 / 3, "hard": 2 / 3})


def test_draws_follow_the_shares_and_repeat_themselves() -> None:
    task = mixture()
    curriculum = task.curriculum
    assert curriculum is not None
    success = {"easy": 0.98, "hard": 0.5}
    drawn = [
        i
        for step in range(200)
        for i in curriculum.indices(3, step, 10, attempt=0, success=success)
    ]
    counts = Counter(task.train.get(i).columns["part"] for i in drawn)
    assert counts["easy"] / 2000 == pytest.approx(0.1 / 2.1, abs=0.015)  # the floor, not .0784
    assert len(set(drawn)) == len(drawn)  # endless parts never repeat
    again = curriculum.indices(3, 7, 10, attempt=0, success=success)
    assert again == drawn[70:80]
    assert again != curriculum.indices(3, 7, 10, attempt=1, success=success)
    assert curriculum.place(again[0])[0] == task.train.get(again[0]).columns["part"]


def test_success_is_an_average_that_forgets() -> None:
    counts = {"curriculum/a/right": 3.0, "curriculum/a/samples": 4.0, "rollouts/sampled": 4.0}
    assert success_after({}, counts) == pytest.approx({"a": 0.9 * 0.5 + 0.1 * 0.75})
    assert success_after({"a": 0.2, "b": 1.0}, counts) == pytest.approx({"a": 0.255, "b": 1.0})


def test_a_part_must_know_what_is_right(tmp_path: Any) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"prompt": "a"}\n')
    held = tmp_path / "y.jsonl"
    held.write_text('{"prompt": "c"}\n')
    own = {"name": "dataset", "path": str(file), "columns": {"prompt": "prompt"}, "style": "raw"}
    parts = {"easy": PARTS["easy"], "own": {**own, "eval_path": str(held), "stop": ["\n"]}}
    with pytest.raises(ValueError, match=r"task\.curriculum must be none unless .* with own"):
        build_task(MixConfig(parts=parts, curriculum=CurriculumKind.success))
