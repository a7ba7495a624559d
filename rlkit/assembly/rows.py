"""This module checks the rows and the rewards of a run with its tokenizer before the first step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rlkit.assembly.prompts import render_prompts
from rlkit.config import Config
from rlkit.models.load import BaseModel
from rlkit.models.source import cache_root
from rlkit.models.special import completion_decoder, tags_among
from rlkit.rewards import SpecialTokens
from rlkit.rewards.pool import RewardPool
from rlkit.runtime.say import Say
from rlkit.tasks import Overlong, Split, Task
from rlkit.tasks.check import check_golds, check_rewards
from rlkit.tasks.survey import survey, usable
from rlkit.training.scoring import Decode
from rlkit.types import Prompt


class UsableRows(NamedTuple):
    """This record holds a task over the rows that can become prompts."""

    task: Task
    lengths: Sequence[int] | None
    """Tokens of each training prompt as it is used; None for an endless task."""


def usable_rows(
    config: Config, task: Task, tokenizer: PreTrainedTokenizerBase, *, say: Say
) -> UsableRows:
    """Look at every row of a task once and leave out what the task drops.

    Args:
        config: Says what becomes of rows that cannot be used.
        task: The task with all its rows.
        tokenizer: The model's tokenizer, with its chat template.
        say: Gets progress and notes, a line each.

    Returns:
        The task over the usable rows, with the lengths of its training prompts.

    Raises:
        ValueError: A row cannot be used and `config` drops none, or no row is left.
    """
    train, lengths = _usable(task.train, config, tokenizer, say)
    held_out, _ = _usable(task.eval, config, tokenizer, say)
    return UsableRows(replace(task, train=train, eval=held_out), lengths)


def held_out_prompts(config: Config, task: Task, base: BaseModel, *, say: Say) -> list[Prompt]:
    """Return the prompts of the evaluation.

    Args:
        config: The run's configuration.
        task: The task over its usable rows.
        base: The model, for its tokenizer and chat template.
        say: Gets a line where there are fewer than `config` asks for.

    Raises:
        ValueError: A prompt has a token that the model does not know.
    """
    wanted = config.evaluation.num_prompts
    size = min(wanted, task.eval.size or wanted)
    if size < wanted:
        say(
            f"evaluation.num_prompts={wanted}, but {size} prompts are held out: all {size} are "
            f"used (at most task.eval_size={config.task.eval_size} are)"
        )
    return render_prompts(task, task.eval, range(size), base, config)


def _usable(
    split: Split, config: Config, tokenizer: PreTrainedTokenizerBase, say: Say
) -> tuple[Split, list[int] | None]:
    """Return the rows of one half that can become prompts, and their lengths in tokens.

    An endless half fits as it is.
    """
    if split.size is None:
        return split, None
    options = config.task
    found = survey(split, tokenizer, cache=cache_root(config.model.cache_dir), say=say)
    most = options.max_prompt_length
    chosen = usable(
        split,
        found,
        max_length=most,
        overlong=options.overlong_prompts,
        bad_rows=options.bad_rows,
    )
    for note in chosen.notes:
        say(note)
    cut = options.overlong_prompts is Overlong.truncate_left
    return chosen.split, [min(n, most) for n in found.lengths if cut or n <= most]


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
