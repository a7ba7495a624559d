"""This module asks before training whether rewards pay for right answers: a no costs a second."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rlkit.rewards import RewardSpec
from rlkit.rewards.golds import row_problem
from rlkit.rewards.parts import OF_PART
from rlkit.rewards.pool import RewardPool
from rlkit.tasks.base import Split, Task
from rlkit.tasks.render import place, render
from rlkit.types import Completion, FinishReason, Prompt

_OTHERS = ("", "I do not know.", "0")
"""Completions that no task counts as right."""
_TAG = re.compile(r"</?[A-Za-z][\w|-]*>|<\|[^|<>]+\|>")
_SHOWN = 3

Decode = Callable[[Sequence[int]], str]
"""Sampled ids to the text that rewards see."""


class RewardCheck(NamedTuple):
    """This holds what gold answers and others earn."""

    gold: list[float]
    """Rewards of gold completions; empty when the task knows none."""
    other: list[float]
    """Rewards of an empty completion and of two wrong ones, for each example."""
    seconds: float
    notes: tuple[str, ...] = ()
    """Things that are odd but no reason to stop, one line each."""


def check_rewards(
    task: Task,
    pool: RewardPool,
    tokenizer: PreTrainedTokenizerBase,
    decode: Decode,
    *,
    num_examples: int = 4,
) -> RewardCheck:
    """Score gold answers and wrong ones on the first held-out examples.

    Each text is tokenised and decoded as a sample is, so that a tag which decoding leaves out is
    missed here and not in training.

    Args:
        task: The task; its held-out examples can all be rendered.
        pool: The reward functions.
        tokenizer: The model's tokenizer.
        decode: The run's way from sampled ids to text.
        num_examples: Held-out examples to look at, >= 1.

    Returns:
        The rewards that gold answers and others earn.

    Raises:
        ValueError: A function cannot be loaded, raises, hangs, crashes, or returns the wrong number
            or type of values. Or a function that the task recommends pays for no gold answer at
            all, or every completion earns the same.
    """
    groups: list[list[Completion]] = []
    vanished: set[str] = set()
    for index in range(min(num_examples, task.eval.size or num_examples)):
        example = task.eval.get(index)
        prompt = render(example, tokenizer, index=index)
        gold = [task.gold_completion(example)] if task.gold_completion else []
        groups.append([_completion(prompt, t, tokenizer, decode) for t in (*gold, *_OTHERS)])
        for before, after in zip(gold, groups[-1], strict=False):
            vanished |= {tag for tag in _TAG.findall(before) if tag not in after.text}
    pool.verify()
    if len(pool.scorers) == len(
        pool.specs
    ):  # a judge has answered its own question, and others cost money
        lost = _about_tags(vanished, tokenizer)
        return RewardCheck([], [], 0.0, (lost,) if lost else ())
    scores = pool.try_functions(groups)
    for (name, _), message in scores.report.messages.items():
        raise ValueError(f"reward.functions.{name} must score every completion, got: {message}")
    num_gold = 1 if task.gold_completion else 0
    lost = _about_tags(vanished, tokenizer)
    notes = [lost] if lost else []
    gold_rewards = [reward for group in scores.rewards for reward in group[:num_gold]]
    other = [reward for group in scores.rewards for reward in group[num_gold:]]
    if num_gold:
        notes += _check_gold(task, pool, [group[0] for group in scores.components], lost)
    if len(set(gold_rewards + other)) == 1 and num_gold:
        raise ValueError(
            f"reward.functions must tell answers apart, got {gold_rewards[0]:g} for gold and wrong "
            f"answers of task {task.name} alike ({', '.join(pool.names)})" + (lost and f"; {lost}")
        )
    return RewardCheck(gold_rewards, other, scores.report.seconds, tuple(notes))


def check_golds(split: Split, specs: Sequence[RewardSpec]) -> list[str]:
    """Say which rows of a finite split a built-in reward cannot judge.

    Args:
        split: The rows; nothing is said of an endless split.
        specs: The reward functions of the run.

    Returns:
        One line for each function that cannot judge some of the rows.

    Raises:
        ValueError: A function with a weight can judge none of them.
    """
    lines = []
    for spec in specs:
        found = []
        for index in range(split.size or 0):
            example = split.get(index)
            if problem := row_problem(spec, example.columns):
                found.append(f"{place(example, index)}: {problem}")
        if not found:
            continue
        shown = "; ".join(found[:_SHOWN]) + ("; ..." if len(found) > _SHOWN else "")
        if len(found) == split.size and spec.weight:
            raise ValueError(
                f"reward.functions.{spec.name} must be able to judge {split.name.value} rows, got "
                f"none of {split.size}: {shown}"
            )
        lines.append(
            f"reward {spec.name} cannot judge {len(found)} of {split.size} {split.name.value} "
            f"rows and gives them no value: {shown}"
        )
    return lines


def _check_gold(
    task: Task, pool: RewardPool, gold: Sequence[Sequence[float]], lost: str
) -> list[str]:
    """Refuse a recommended function that pays for no gold answer; name those paid for only some."""
    recommended = [(spec.fn, spec.options) for spec in task.rewards]
    notes = []
    for k, spec in enumerate(pool.specs):
        if not (spec.weight > 0 and (spec.fn, spec.options) in recommended):
            continue
        if spec.fn == "environment":  # it pays for what is done, not for a text
            continue
        # A part's reward says nothing of other parts; NaN from any other function is unpaid.
        seen = [i for i, c in enumerate(gold) if spec.fn != OF_PART or not math.isnan(c[k])]
        unpaid = [i for i in seen if not gold[i][k] > 0]
        if not unpaid:
            continue
        first = unpaid[0]
        got = (
            f"reward.functions.{spec.name} must pay for gold answers, got {gold[first][k]:g} for "
            f"held-out example {first} of task {task.name}"
        )
        if len(unpaid) == len(seen):
            raise ValueError(got + (lost and f"; {lost}"))
        notes.append(f"{got}; {len(seen) - len(unpaid)} others are paid, so the run goes on")
    return notes


def _about_tags(vanished: set[str], tokenizer: PreTrainedTokenizerBase) -> str:
    special = vanished & tokenizer.get_vocab().keys()  # a token that decoding leaves out
    parts = []
    if special:
        parts.append(
            f"{', '.join(sorted(special))}: special tokens of the tokenizer, which rewards do not "
            "see (reward.special_tokens=keep shows them)"
        )
    if unknown := vanished - special:
        parts.append(
            f"{', '.join(sorted(unknown))}: text that the tokenizer cannot write, so no completion "
            "has it"
        )
    return "; ".join(parts)


def _completion(
    prompt: Prompt, text: str, tokenizer: PreTrainedTokenizerBase, decode: Decode
) -> Completion:
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return Completion(prompt=prompt, text=decode(ids), ids=ids, finish_reason=FinishReason.stop)
