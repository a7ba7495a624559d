"""From a configuration to everything a run is made of; what cannot work is refused here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from rlkit.algorithms import Objective, Warmup, build, warmup
from rlkit.assembly.device import resolve_device
from rlkit.assembly.from_config import (
    EVALUATION_SEED,
    new_state,
    resamples,
    schedule_of,
    shuffle_seed,
    update_settings,
)
from rlkit.assembly.generators import bind_adapter, new_generator
from rlkit.assembly.load import Loaded, choose_generator, plan_and_load
from rlkit.assembly.parts import Parts, render_prompts
from rlkit.assembly.worst_step import try_worst_step, verdict
from rlkit.config import Config, ConfigError, flatten, option_of
from rlkit.generation import Progress, sample_seed, sampling_config
from rlkit.models.load import BaseModel
from rlkit.plan.device import Meter, let_segments_grow
from rlkit.plan.of_config import Planned
from rlkit.plan.run import record
from rlkit.policy.policy import CRITIC_PREFIX, CriticChoice, new_policy
from rlkit.rewards import reward_specs
from rlkit.rewards.pool import RewardPool
from rlkit.tasks import Overlong, Split, Task, build_task
from rlkit.tasks.check import check_rewards
from rlkit.tasks.render import without_overlong
from rlkit.tracking.base import Phase, RunInfo, Tracker
from rlkit.training.collect import Collector
from rlkit.training.divergence import DivergenceMeter, EvalKL
from rlkit.training.evaluate import Evaluator
from rlkit.training.loss_scale import FLOAT16
from rlkit.training.stopping import StopRequest
from rlkit.training.trainer import Trainer
from rlkit.training.update import TrainState
from rlkit.types import Algorithm, Generator, Prompt, Setting


def assemble(config: Config, *, say: Callable[[str], None]) -> Parts:
    """Check and load everything, cheapest first; raises ConfigError with one line."""
    try:
        return _assemble(config, say)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


class _Start(NamedTuple):
    """What is known and running before a model is loaded."""

    config: Config
    device: torch.device
    task: Task
    setting: Setting
    algorithm: Algorithm
    warmup: Warmup | None
    rewards: RewardPool
    resources: ExitStack


def _assemble(config: Config, say: Callable[[str], None]) -> Parts:
    device = resolve_device(config.device)
    # Recorded in the run's folder as chosen: a resumed run must sample with the same engine.
    config.generator = choose_generator(config, device, say=say)
    task = build_task(config.task)
    setting = Setting(
        group_size=config.algorithm.group_size,
        max_completion_length=task.max_completion_length,
        updates_per_batch=config.optim.updates_per_batch,
        microbatched=config.memory.tokens_per_microbatch > 0,
    )
    objective = Objective(config.algorithm, config.kl, config.ratio, config.correction)
    algorithm = build(objective, setting)
    first = warmup(objective, setting)
    rewards = RewardPool(reward_specs(config.reward, task.rewards), config.reward)
    resources = ExitStack()
    resources.callback(rewards.close)
    start = _Start(config, device, task, setting, algorithm, first, rewards, resources)
    try:
        rewards.start()
        meter = Meter.start(device)
        longest = task.max_prompt_length, task.max_completion_length
        planned, loaded = plan_and_load(config, algorithm, device=device, longest=longest, say=say)
        if loaded.engine is not None:
            resources.callback(loaded.engine.close)
        let_segments_grow(device)
        parts = _with_model(start, planned, loaded, meter, say)
        try_worst_step(parts, say=say)
        resources.callback(lambda: say(verdict(parts)))
        return parts
    except BaseException:
        resources.close()
        raise


def _with_model(
    start: _Start, planned: Planned, loaded: Loaded, meter: Meter, say: Callable[[str], None]
) -> Parts:
    config, task, base = start.config, start.task, loaded.base
    sampling = sampling_config(
        config.generator.sampling,
        max_completion_length=task.max_completion_length,
        stop=task.stop,
    )
    check_rewards(task, start.rewards, base.tokenizer)
    train, eval_prompts = _splits(config, task, base, say=say)
    _say_what_is_known(base, eval_prompts[0], say)
    critic = CriticChoice.lora if start.algorithm.outputs.values else CriticChoice.none
    policy = new_policy(
        base,
        config.model,
        seed=config.seed,
        critic=critic,
        holds_reference=planned.work.holds_reference,
        workspace_bytes=planned.plan.choice.workspace_bytes,
    )
    injector = bind_adapter(
        planned.config.generator, loaded.engine, base, policy, sampled=loaded.sampled, say=say
    )
    return Parts(
        config=config,
        planned=planned,
        meter=meter,
        device=start.device,
        base=base,
        policy=policy,
        task=task,
        rewards=start.rewards,
        engine=loaded.engine,
        injector=injector,
        resources=start.resources,
        algorithm=start.algorithm,
        warmup=start.warmup,
        setting=start.setting,
        sampling=sampling,
        train=train,
        eval_prompts=eval_prompts,
    )


def _say_what_is_known(base: BaseModel, prompt: Prompt, say: Callable[[str], None]) -> None:
    for note in base.notes:
        say(note)
    say(f"first prompt, {len(prompt.ids)} tokens: {prompt.text!r}")
    say(f"its token ids: {' '.join(map(str, prompt.ids))}")


def _splits(
    config: Config, task: Task, base: BaseModel, *, say: Callable[[str], None]
) -> tuple[Split, list[Prompt]]:
    """The training split without prompts that the task drops, and the held-out prompts."""
    train, held_out = task.train, task.eval
    if config.task.overlong_prompts is Overlong.drop:
        longest = task.max_prompt_length
        train, num_train = without_overlong(train, base.tokenizer, max_length=longest)
        held_out, num_eval = without_overlong(held_out, base.tokenizer, max_length=longest)
        say(f"prompts over {longest} tokens left out: {num_train} training, {num_eval} held out")
    size = min(config.evaluation.num_prompts, held_out.size or config.evaluation.num_prompts)
    eval_prompts = render_prompts(task, held_out, range(size), base, config)
    return train, eval_prompts


def initial_state(parts: Parts) -> TrainState:
    """The state before the first step."""
    state = new_state(parts.policy, parts.config, critic_prefix=CRITIC_PREFIX)
    if parts.base.dtype is torch.float16:
        state.loss_scale = FLOAT16
    return state


def make_generator(parts: Parts, tracker: Tracker, stop: StopRequest) -> Generator:
    """The configured generator, which `parts` will close; a stop ends it between tokens."""

    def report(progress: Progress) -> None:
        stop.check()
        if progress.rows_done == progress.rows:  # an engine is about to give its cache back
            parts.meter.note()
        tracker.progress(Phase.generate, progress.rows_done, progress.rows)

    generator = new_generator(
        parts.planned.config.generator,
        parts.base,
        parts.policy,
        engine=parts.engine,
        injector=parts.injector,
        progress=report,
    )
    parts.resources.callback(generator.close)
    return generator


def make_trainer(parts: Parts, tracker: Tracker, stop: StopRequest, *, run_dir: Path) -> Trainer:
    """The training loop over `parts`, observed by `tracker`."""
    config = parts.config
    record(parts.planned.plan, run_dir)
    generator = make_generator(parts, tracker, stop)
    collector = Collector(
        generator=generator,
        prompts=parts.prompts,
        rewards=parts.rewards,
        decode=parts.decode,
        seed=partial(sample_seed, config.seed),
        sampling=parts.sampling,
        group_size=parts.setting.group_size,
        resample=resamples(config),
    )
    return Trainer(
        algorithm=parts.algorithm_at,
        settings=update_settings(parts.planned.config),
        schedule=schedule_of(config),
        collector=collector,
        generator=generator,
        evaluate=_evaluator(parts, generator, tracker),
        tracker=tracker,
        shuffle_seed=partial(shuffle_seed, config),
        pad_token_id=parts.base.tokenizer.pad_token_id,
        device=parts.device,
        run_dir=run_dir,
        stop=config.stop,
        planned_bytes=parts.planned.plan.peak,
    )


def _evaluator(parts: Parts, generator: Generator, tracker: Tracker) -> Evaluator:
    options = parts.config.evaluation
    return Evaluator(
        generator=generator,
        prompts=parts.eval_prompts,
        num_samples=options.samples_per_prompt,
        sampling=parts.sampling,
        seed=partial(sample_seed, EVALUATION_SEED, 0),
        decode=parts.decode,
        success=parts.task.success,
        rewards=parts.rewards,
        divergence=None if options.kl is EvalKL.none else _divergence(parts, options.kl),
        tracker=tracker,
    )


def _divergence(parts: Parts, estimator: EvalKL) -> DivergenceMeter:
    return DivergenceMeter(
        learner=parts.policy,
        estimator=estimator,
        temperature=parts.sampling.temperature,
        pad_token_id=parts.base.tokenizer.pad_token_id,
        device=parts.device,
        tokens_per_microbatch=parts.config.memory.tokens_per_microbatch,
    )


def run_info(
    parts: Parts, *, run_dir: Path, versions: Mapping[str, str], first_step: int
) -> RunInfo:
    """What the tracker is told before the first step."""
    config = parts.config
    device = str(parts.device)
    if parts.device.type == "cuda":
        device = torch.cuda.get_device_name(parts.device)
    return RunInfo(
        run_dir=run_dir,
        name=run_dir.name,
        task=parts.task.name,
        model=config.model.source,
        algorithm=option_of("algorithm", config.algorithm),
        device=device,
        dtype=str(parts.base.dtype).removeprefix("torch."),
        dtype_reason=parts.base.notes[0],
        num_steps=config.steps,
        first_step=first_step,
        prompts_per_step=config.prompts_per_step,
        group_size=parts.setting.group_size,
        reward_names=tuple(parts.rewards.names),
        config=flatten(config),
        versions=versions,
    )
