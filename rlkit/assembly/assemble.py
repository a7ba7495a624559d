"""This module makes everything that a run needs; it refuses what cannot work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

import torch

from rlkit.assembly.device import resolve_device
from rlkit.assembly.environments import Stage, environment_pool, new_stage
from rlkit.assembly.generators import bind_adapter
from rlkit.assembly.lengths import longest_prompt
from rlkit.assembly.load import LoadedModels, choose_generator, plan_and_load
from rlkit.assembly.model_run import ModelRun
from rlkit.assembly.prompts import render_prompts
from rlkit.assembly.rewards import reward_pool, start_rewards
from rlkit.assembly.rows import held_out_prompts, tried_rewards, usable_rows
from rlkit.assembly.shares import keep_own_share
from rlkit.assembly.side_tasks import side_tasks
from rlkit.assembly.stops import stops_before_loading
from rlkit.assembly.targets import Imitated, imitated_by, with_held_out
from rlkit.assembly.team import check_team
from rlkit.assembly.worst_step import try_worst_step, verdict
from rlkit.config import Config, ConfigError, algorithm_of, setting_of
from rlkit.generation import VLLMGeneratorConfig, sampling_config
from rlkit.generation.vllm.sampling_options import require_vllm
from rlkit.models.load import BaseModel
from rlkit.models.resolved import resolve_model
from rlkit.models.special import Stops, describe_ids, stops_of
from rlkit.models.vocabulary import without_rows
from rlkit.plan.device import Meter, let_segments_grow
from rlkit.plan.of_config import Planned
from rlkit.policy.policy import CriticChoice, new_policy
from rlkit.ranks import ALONE, Ranks
from rlkit.rewards.pool import RewardPool
from rlkit.tasks import Task, build_task, with_environment
from rlkit.types import Algorithm, Prompt, Setting

_GENERATED_ROWS = 256
"""Rows of an endless task that are looked at: it makes all of them from the same words."""


def assemble(config: Config, *, say: Callable[[str], None], ranks: Ranks = ALONE) -> ModelRun:
    """Check and load everything, cheapest first; raises ConfigError with one line."""
    try:
        return _assemble(config, say, ranks)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


class _Start(NamedTuple):
    """This record holds what is known and running before a model is loaded."""

    config: Config
    device: torch.device
    imitated: Imitated
    setting: Setting
    algorithm: Algorithm
    rewards: RewardPool
    stage: Stage | None
    resources: ExitStack
    ranks: Ranks


def _assemble(config: Config, say: Callable[[str], None], ranks: Ranks) -> ModelRun:
    device = resolve_device(config.device)
    # Recorded in the run's folder as chosen: a resumed run must sample with the same engine.
    config = replace(config, generator=choose_generator(config, device, say=say))
    if isinstance(config.generator, VLLMGeneratorConfig):
        require_vllm()
    task = with_environment(build_task(config.task), config.environment)
    setting, algorithm = setting_of(config), algorithm_of(config)
    rewards = reward_pool(config, task, device)
    resources = ExitStack()
    resources.callback(rewards.close)
    pool = environment_pool(config, task, resources)
    try:
        check_team(config, ranks, has_environment=pool is not None)
        rewards.verify()
        if pool is not None:
            pool.start()
        meter = Meter.start(device)
        model = resolve_model(config.model, device=device, say=say)
        config = replace(config, model=model.config)
        # Before a weight is read: a row that cannot be used ends the run here.
        rows = usable_rows(config, task, model.tokenizer, say=say)
        stops = stops_before_loading(config, task, model)
        imitated = imitated_by(config, rows.task, model.tokenizer, stops, say=say)
        stage = new_stage(pool, model.tokenizer, config.environment, task)
        start = _Start(
            config, device, imitated, setting, algorithm, rewards, stage, resources, ranks
        )
        longest = task.max_prompt_length, task.max_completion_length
        planned, loaded = plan_and_load(
            config,
            algorithm,
            model=model,
            longest=longest,
            say=say,
            longest_prompt=longest_prompt(config, rows, model),
            ranks=ranks,
        )
        if loaded.engine is not None:
            resources.callback(loaded.engine.close)
        let_segments_grow(device)
        run = _with_model(start, planned, loaded, meter, say)
        try_worst_step(run, say=say)
        resources.callback(lambda: say(verdict(run)))
        return run
    except BaseException:
        resources.close()
        raise


def _with_model(
    start: _Start, planned: Planned, loaded: LoadedModels, meter: Meter, say: Callable[[str], None]
) -> ModelRun:
    config, task, base = start.config, start.imitated.task, loaded.base
    sampling = sampling_config(
        config.generator.sampling,
        max_completion_length=task.max_completion_length,
        stop=task.stop,
    )
    stops = stops_of(base.tokenizer, base.stop_ids, sampling.stop)
    eval_prompts = held_out_prompts(config, task, base, say=say)
    decode = tried_rewards(config, task, start.rewards, base.tokenizer, ends=base.stop_ids, say=say)
    _say_what_is_known(base, stops, eval_prompts[0], say)
    _check_vocabulary(config, task, base)
    policy = new_policy(
        base,
        config.model,
        seed=config.seed,
        critic=CriticChoice.lora if start.algorithm.outputs.values else CriticChoice.none,
        holds_reference=planned.work.holds_reference,
        workspace_bytes=planned.plan.choice.workspace_bytes,
    )
    injector = bind_adapter(
        planned.config.generator, loaded.engine, base, policy, sampled=loaded.sampled, say=say
    )
    start_rewards(start.rewards, policy, base)
    return ModelRun(
        config=config,
        planned=planned,
        meter=meter,
        device=start.device,
        base=base,
        policy=keep_own_share(policy, start.ranks),
        task=task,
        rewards=start.rewards,
        engine=loaded.engine,
        injector=injector,
        resources=start.resources,
        algorithm=start.algorithm,
        setting=start.setting,
        sampling=sampling._replace(stop=stops.strings),
        stop_ids=stops.ids,
        decode=decode,
        train=task.train,
        eval_prompts=eval_prompts,
        imitated=with_held_out(start.imitated, eval_prompts),
        side_tasks=side_tasks(config, base, say=say),
        stage=start.stage,
        ranks=start.ranks,
    )


def _check_vocabulary(config: Config, task: Task, base: BaseModel) -> None:
    """Refuse a training prompt with a token that the model does not know, before the first step."""
    if without_rows(base.tokenizer, base.num_rows):
        some = range(_GENERATED_ROWS if task.train.size is None else task.train.size)
        render_prompts(task, task.train, some, base, config)


def _say_what_is_known(
    base: BaseModel, stops: Stops, prompt: Prompt, say: Callable[[str], None]
) -> None:
    for note in base.notes:
        say(note)
    if further := stops.ids - base.stop_ids:
        say(f"stop strings that are special tokens: {describe_ids(base.tokenizer, further)}")
    say(f"first prompt, {len(prompt.ids)} tokens: {prompt.text!r}")
    say(f"its token ids: {' '.join(map(str, prompt.ids))}")
