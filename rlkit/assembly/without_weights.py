"""The rows, the stop tokens and the rewards of a run, looked at with its tokenizer alone.

A run that cannot earn its rewards is found in a second or two, without loading a model.
"""

from __future__ import annotations

from contextlib import closing

import torch

from rlkit.assembly.rewards import reward_pool
from rlkit.assembly.rows import tried_rewards
from rlkit.assembly.stops import eos_of, stops_before_loading
from rlkit.assembly.targets import imitated_by
from rlkit.config import Config
from rlkit.models.resolved import ResolvedModel
from rlkit.models.special import describe_ids, stop_token_ids
from rlkit.models.vocabulary import check_ids, vocabulary_notes, without_rows
from rlkit.runtime.say import Say
from rlkit.tasks import Task
from rlkit.tasks.render import render_all

_LOOKED_AT = 256
"""Prompts that are rendered; a run renders all of them."""


def look_without_weights(config: Config, task: Task, model: ResolvedModel, *, say: Say) -> None:
    """Look at what a run would refuse or warn of before its first step, the weights excepted.

    Args:
        config: The run's configuration, with its generator chosen.
        task: The task over its usable rows.
        model: What `config.model` was resolved to.
        say: Gets a line for each thing that a user may not expect.

    Raises:
        ValueError: The model does not know a token of a prompt, a stop string can never match, or
            a reward cannot be earned.
    """
    tokenizer = model.tokenizer
    num_rows = int(model.hf_config.get_text_config().vocab_size)
    with closing(reward_pool(config, task, torch.device("cpu"))) as pool:
        pool.verify()
        ends = stop_token_ids(tokenizer, eos_of(model))
        for note in vocabulary_notes(tokenizer, num_rows, ends):
            say(note)
        stops = stops_before_loading(config, task, model)
        say(f"stop tokens: {describe_ids(tokenizer, stops.ids)}")
        task = imitated_by(config, task, tokenizer, stops, say=say).task
        tried_rewards(config, task, pool, tokenizer, ends=ends, say=say)
    if without_rows(tokenizer, num_rows):
        size = min(_LOOKED_AT, task.train.size or _LOOKED_AT)
        rendered = render_all(
            task.train,
            range(size),
            tokenizer,
            max_length=task.max_prompt_length,
            overlong=config.task.overlong_prompts,
        )
        for prompt in rendered.prompts:
            where = f"prompt {prompt.index}"
            check_ids(prompt.ids, num_rows, where=where, tokenizer=tokenizer)
