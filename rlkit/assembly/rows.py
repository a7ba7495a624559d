"""This module checks the rows and the rewards of a run with its tokenizer before the first step."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from rlkit.assembly.prompts import render_prompts
from rlkit.config import Config
from rlkit.models.load import BaseModel
from rlkit.models.source import cache_root
from rlkit.models.special import completion_decoder, tags_among
from rlkit.rewards import SpecialTokens
from rlkit.rewards.pool import RewardPool
from rlkit.runtime.say import Say
from rlkit.tasks import Split, Task
from rlkit.tasks.check import check_golds, check_rewards
from rlkit.tasks.survey import Survey, Usable, survey, usable
from rlkit.training.collect import Decode
from rlkit.types import Prompt


def with_usable_rows(
    config: Config, task: Task, base: BaseModel, *, say: Say
) -> tuple[Task, list[Prompt]]:
    """Render every row once and leave out what the task drops.

    Args:
        config: The run's configuration.
        task: The task as its builder made it.
        base: The model, for its tokenizer and chat template.
        say: Gets a line for what was left out.

    Returns:
        The task with rows that can all be used, and the held-out prompts of the evaluation.

    Raises:
        ValueError: A row cannot become a prompt, or is too long, and the task does not drop it.
    """
    task = usable_rows(config, task, base.tokenizer, say=say)
    wanted = config.evaluation.num_prompts
    size = min(wanted, task.eval.size or wanted)
    if size < wanted:
        say(
            f"evaluation.num_prompts={wanted}, but {size} prompts are held out: all {size} are "
            f"used (at most task.eval_size={config.task.eval_size} are)"
        )
    return task, render_prompts(task, task.eval, range(size), base, config)


def usable_rows(
    config: Config, task: Task, tokenizer: PreTrainedTokenizerBase, *, say: Say
) -> Task:
    """Return `task` with the rows that can become prompts.

    Args:
        config: Says what becomes of rows that cannot be used.
        task: The task with all its rows.
        tokenizer: The model's tokenizer, with its chat template.
        say: Gets progress and notes, a line each.

    Returns:
        The task over the usable rows.

    Raises:
        ConfigError: A row cannot be used and `config` drops none, or no row is left.
    """
    train, held_out = (_usable(split, config, tokenizer, say) for split in (task.train, task.eval))
    return replace(task, train=train, eval=held_out)


def _usable(split: Split, config: Config, tokenizer: PreTrainedTokenizerBase, say: Say) -> Split:
    """Return the rows of one half that can become prompts; an endless half fits."""
    if split.size is None:
        return split
    _, chosen = look_at(split, config, tokenizer, say=say)
    for note in chosen.notes:
        say(note)
    return chosen.split


def look_at(
    split: Split, config: Config, tokenizer: PreTrainedTokenizerBase, *, say: Say
) -> tuple[Survey, Usable]:
    """Look at every row of a finite split.

    Args:
        split: The rows.
        config: Says what becomes of rows that cannot be used.
        tokenizer: The model's tokenizer, with its chat template.
        say: Gets progress from 2 s on.

    Returns:
        What was found about each row, and the rows that can be used.

    Raises:
        ValueError: A row cannot be used and may not be dropped.
    """
    found = survey(split, tokenizer, cache=cache_root(config.model.cache_dir), say=say)
    options = config.task
    chosen = usable(
        split,
        found,
        max_length=options.max_prompt_length,
        overlong=options.overlong_prompts,
        bad_rows=options.bad_rows,
    )
    return found, chosen


def tried_rewards(
    config: Config,
    task: Task,
    rewards: RewardPool,
    tokenizer: PreTrainedTokenizerBase,
    *,
    ends: Collection[int],
    say: Say,
) -> Decode:
    """Score gold answers and look at every row's columns, as the rewards will see them.

    Args:
        config: The run's configuration.
        task: The task, of which every row can become a prompt.
        rewards: The running reward functions.
        tokenizer: The model's tokenizer.
        ends: Ids that end a completion of this model.
        say: Gets a warning for each row and tag that a reward will miss.

    Returns:
        The way from sampled ids to the text that rewards see.

    Raises:
        ValueError: A reward cannot be earned or cannot judge any row.
    """
    keep = config.reward.special_tokens is SpecialTokens.keep
    decode = completion_decoder(tokenizer, keep=keep, ends=ends)
    if not rewards.specs:
        return decode
    notes = [*check_rewards(task, rewards, tokenizer, decode).notes]
    for split in (task.train, task.eval):
        notes += check_golds(split, rewards.specs)
    for note in notes:
        say(f"warning: {note}")
    tags = tags_among(tokenizer)
    if tags and not keep:
        say(
            f"special tokens that rewards do not see: {', '.join(tags)} "
            "(reward.special_tokens=keep shows them)"
        )
    return decode
