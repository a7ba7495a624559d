"""Do the rewards pay for right answers? Asked before training, where a no costs a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rlkit.rewards.pool import RewardPool
from rlkit.tasks.base import Task
from rlkit.tasks.render import render
from rlkit.types import Completion, FinishReason, Prompt

_OTHERS = ("", "I do not know.", "0")
"""Completions that no task counts as right."""


class RewardCheck(NamedTuple):
    """What gold answers and others earn."""

    gold: list[float]
    """Rewards of gold completions; empty when the task knows none."""
    other: list[float]
    """Rewards of an empty completion and of two wrong ones, for each example."""
    seconds: float


def check_rewards(
    task: Task,
    pool: RewardPool,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_examples: int = 4,
) -> RewardCheck:
    """Score gold answers and wrong ones on the first held-out examples.

    Raises ValueError when a function cannot be loaded, raises, hangs, crashes, or returns the wrong
    number or type of values; when a function that the task recommends gives a gold answer nothing;
    or when every completion earns the same.
    """
    groups: list[list[Completion]] = []
    for index in range(min(num_examples, task.eval.size or num_examples)):
        example = task.eval.get(index)
        prompt = render(example, tokenizer, index=index)
        gold = [task.gold_completion(example)] if task.gold_completion else []
        groups.append([_completion(prompt, text, tokenizer) for text in (*gold, *_OTHERS)])
    pool.start()
    scores = pool.score(groups)
    for (name, _), message in scores.report.messages.items():
        raise ValueError(f"reward.functions.{name} must score every completion, got: {message}")
    num_gold = 1 if task.gold_completion else 0
    check = RewardCheck(
        gold=[reward for group in scores.rewards for reward in group[:num_gold]],
        other=[reward for group in scores.rewards for reward in group[num_gold:]],
        seconds=scores.report.seconds,
    )
    if num_gold:
        _check_gold(task, pool, [group[0] for group in scores.components])
    if len(set(check.gold + check.other)) == 1 and num_gold:
        raise ValueError(
            f"reward.functions must tell answers apart, got {check.gold[0]:g} for gold and wrong "
            f"answers of task {task.name} alike ({', '.join(pool.names)})"
        )
    return check


def _check_gold(task: Task, pool: RewardPool, gold: Sequence[Sequence[float]]) -> None:
    recommended = [(spec.fn, spec.options) for spec in task.rewards]
    for k, spec in enumerate(pool.specs):
        if spec.weight > 0 and (spec.fn, spec.options) in recommended:
            for i, components in enumerate(gold):
                if not components[k] > 0:  # NaN included
                    raise ValueError(
                        f"reward.functions.{spec.name} must pay for gold answers, got "
                        f"{components[k]:g} for held-out example {i} of task {task.name}"
                    )


def _completion(prompt: Prompt, text: str, tokenizer: PreTrainedTokenizerBase) -> Completion:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Completion(prompt=prompt, text=text, ids=tuple(ids), finish_reason=FinishReason.stop)
