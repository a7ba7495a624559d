"""A run that imitates takes its completions from the task; this module makes them rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rlkit.config import Config, algorithm_of
from rlkit.models.special import Stops, end_of_turn_ids
from rlkit.rewards import RewardSpec, reward_specs
from rlkit.runtime.say import Say
from rlkit.tasks import PromptStyle, Split, Task
from rlkit.tasks.config import BadRows, OverlongTargets
from rlkit.tasks.targets import Targets, text_of, usable_targets
from rlkit.training.learner import Learner
from rlkit.training.targets import Target, TargetMeter
from rlkit.types import Prompt, RolloutKind


def imitates(config: Config) -> bool:
    """Return whether the run's algorithm learns from targets and samples nothing to learn from."""
    return algorithm_of(config).rollouts is RolloutKind.targets


def specs_of(config: Config, task: Task) -> tuple[RewardSpec, ...]:
    """Return the reward functions of a run; a run that imitates may have none.

    Raises ValueError as `reward_specs` does.
    """
    if imitates(config) and not (config.reward.functions or task.rewards):
        return ()
    return reward_specs(config.reward, task.rewards)


class Imitated(NamedTuple):
    """This record holds what a run imitates; a run that samples imitates nothing."""

    task: Task
    """The task, of which every training row has a usable target."""
    targets: Targets | None
    held_out: Sequence[Target] = ()


def imitated_by(
    config: Config, task: Task, tokenizer: PreTrainedTokenizerBase, stops: Stops, *, say: Say
) -> Imitated:
    """Return what a run imitates, every training row looked at.

    Args:
        config: The run's configuration.
        task: The task, of which every row can become a prompt.
        tokenizer: The model's tokenizer, with its chat template.
        stops: Tokens and strings that end a completion.
        say: Gets a line for rows that are left out or cut.

    Returns:
        The task with the rows that can be used, and the rule; no held-out target yet.

    Raises:
        ValueError: A row has no usable target and may not be dropped.
    """
    if not imitates(config):
        return Imitated(task, None)
    targets = Targets(
        text=text_of(task, config.task),
        tokenizer=tokenizer,
        end_id=_end_id(task, tokenizer, stops.ids),
        stop=tuple(stops.strings),
        max_length=task.max_completion_length,
    )
    return Imitated(_with_usable_targets(config, task, targets, say), targets)


def with_held_out(imitated: Imitated, prompts: Sequence[Prompt]) -> Imitated:
    """Return `imitated` with the targets of the evaluation's prompts."""
    if imitated.targets is None:
        return imitated
    return imitated._replace(held_out=_held_out(imitated.task, prompts, imitated.targets))


def meter_of(
    imitated: Imitated, *, learner: Learner, pad_token_id: int, tokens_per_microbatch: int
) -> TargetMeter | None:
    """Return what measures the loss of the held-out targets; None where there are none.

    Args:
        imitated: The held-out targets.
        learner: The policy; its leaves say where to compute.
        pad_token_id: The id that fills the padding.
        tokens_per_microbatch: Most tokens of a forward pass; 0 = all in one.
    """
    if not imitated.held_out:
        return None
    return TargetMeter(
        learner=learner,
        targets=imitated.held_out,
        pad_token_id=pad_token_id,
        device=next(iter(learner.adapter.values())).device,
        tokens_per_microbatch=tokens_per_microbatch,
    )


def _with_usable_targets(config: Config, task: Task, targets: Targets, say: Say) -> Task:
    """Return `task` with the training rows that have a usable target; an endless half fits."""
    if task.train.size is None:
        return task
    options = config.task
    chosen = usable_targets(
        task.train, targets, overlong=options.overlong_targets, bad_rows=options.bad_rows
    )
    for note in chosen.notes:
        say(note)
    return replace(task, train=chosen.split)


def _held_out(task: Task, prompts: Sequence[Prompt], targets: Targets) -> list[Target]:
    """Return the targets of held-out prompts, without those that have no usable one.

    A target that is too long is cut: the likelihood of its first tokens counts.
    """
    usable = usable_targets(
        task.eval._replace(size=len(prompts)),
        targets,
        overlong=OverlongTargets.truncate,
        bad_rows=BadRows.drop,
    ).split
    wanted = {usable.get(i).key for i in range(usable.size or 0)}
    return targets_for([p for p in prompts if p.key in wanted], task.eval, targets)


def targets_for(prompts: Sequence[Prompt], split: Split, targets: Targets) -> list[Target]:
    """Return prompts of `split` with their targets."""
    return [
        Target(prompt, *targets.of(split.get(prompt.index), index=prompt.index))
        for prompt in prompts
    ]


def _end_id(task: Task, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]) -> int | None:
    """Return the token that ends a turn of a chat, or else a text; None where there is none."""
    turn = end_of_turn_ids(tokenizer) if task.style is PromptStyle.chat else frozenset()
    if turn:
        return min(turn)
    eos = tokenizer.eos_token_id
    if isinstance(eos, int) and eos in stop_ids:
        return eos
    return min(stop_ids, default=None)
