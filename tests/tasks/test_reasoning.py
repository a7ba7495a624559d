"""reasoning-gym's problems: disjoint halves, its own scores, one line for what it does not know."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from rlkit.rewards.reasoning import reasoning_gym as score
from rlkit.tasks import Example, Task, build_task
from rlkit.tasks.more_config import ReasoningGymConfig
from rlkit.types import Completion, FinishReason, Prompt

_REASON = "the extra rlkit-lm[reasoning] is not installed"


def task_of(**options: Any) -> Task:
    pytest.importorskip("reasoning_gym", reason=_REASON)
    return build_task(ReasoningGymConfig(**options))


def completion(example: Example, text: str) -> Completion:
    prompt = Prompt(index=0, ids=(1,), text="q", columns=example.columns)
    return Completion(prompt=prompt, text=text, ids=(1,), finish_reason=FinishReason.stop)


def questions(task: Task, count: int) -> list[object]:
    return [task.train.get(i).prompt for i in range(count)]


@pytest.mark.parametrize("dataset", ["chain_sum", "gcd", "letter_counting", "countdown"])
def test_the_library_judges_and_the_halves_are_disjoint(dataset: str) -> None:
    task = task_of(dataset=dataset, eval_size=16)
    assert task.success is not None and task.gold_completion is not None
    for index in range(8):
        example = task.train.get(index)
        gold = completion(example, task.gold_completion(example))
        assert task.success(gold) and score(gold) == 1.0
        assert score(completion(example, str(example.columns["answer"]))) == 0.0  # no tag
        assert not task.success(completion(example, "<answer>none of it</answer>"))
    held = {task.eval.get(i).prompt for i in range(task.eval.size or 0)}
    assert len(held) == 16 and not held & set(questions(task, 300))


def test_a_small_data_set_repeats_questions_but_never_a_held_out_one() -> None:
    """Sums of two numbers from 1 to 4 have 32 questions at most, of which 8 are held out."""
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    task = task_of(dataset="chain_sum", options=options, eval_size=8)
    held = {task.eval.get(i).prompt for i in range(8)}
    seen = questions(task, 400)
    assert len(set(seen)) < 400 and not held & set(seen)
    assert questions(task_of(dataset="chain_sum", options=options, eval_size=8), 400) == seen


def test_seeds_of_the_library_overlap_which_is_why_halves_are_ranges() -> None:
    library = pytest.importorskip("reasoning_gym", reason=_REASON)
    one, other = (library.create_dataset("gcd", seed=s, size=9) for s in (3, 4))
    assert [other[i]["question"] for i in range(8)] == [one[i]["question"] for i in range(1, 9)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "nope"}, "task.dataset and task.options must be known .* Dataset 'nope'"),
        ({"options": {"nope": 1}}, "task.dataset and task.options must be known .* 'nope'"),
    ],
)
def test_what_the_library_does_not_know(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        task_of(**options)
    assert "\n" not in str(error.value)


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r"task=reasoning_gym needs pip install 'rlkit-lm\[reason"):
        build_task(ReasoningGymConfig())
