"""This module does the work of `rlkit eval`: it loads, samples, judges, prints and writes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from rlkit.assembly.assemble import assemble
from rlkit.assembly.device import fastest_thread_count
from rlkit.assembly.init_from import started
from rlkit.assembly.saved_run import read_finished_run
from rlkit.assembly.stoppable import StoppableRewards
from rlkit.config import Config, ConfigError
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.models import ModelConfig
from rlkit.models.config import AdapterUse, TuningKind
from rlkit.rewards import RewardConfig
from rlkit.tasks import TaskConfig
from rlkit.tasks.config import DataConfig
from rlkit.tracking.base import EvalRecord
from rlkit.tracking.files import encode, write_atomic
from rlkit.tracking.intervals import change
from rlkit.tracking.quiet import QuietTracker
from rlkit.tracking.summary import result_table
from rlkit.training.stopping import StopRequest

_ALL = 20_000
"""More prompts than a task holds out: all of them are used."""
_MOST_COMPLETIONS = 1_000_000
_ROWS_AT_ONCE = 256
"""Completions that memory is planned for; a generator samples the others after them."""
_PLAIN_WIDTH = 120


class _Adapter(StrEnum):
    own = "own"
    off = "off"
    """All zeros, which is the base model."""


def evaluate(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Evaluate what the options name; raises ValueError with one line when that cannot be."""
    register()
    config = _config(options, overrides)
    if config.memory.torch_threads == 0:
        threads = fastest_thread_count()
        config = replace(config, memory=replace(config.memory, torch_threads=threads))
    torch.set_num_threads(config.memory.torch_threads)
    name = str(options.run or options.model)
    records = _records(config, name, paired=options.run is not None and options.against == "base")
    _print(records, options.samples)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.out, (encode(_as_json(records, config)) + "\n").encode())
        print(f"written to {options.out}")


def _config(options: argparse.Namespace, overrides: Sequence[str]) -> Config:
    """Return the configuration of a run that would train on the task, of which one part is used."""
    samples = options.samples
    prompts = options.prompts or max(1, min(_ALL, _MOST_COMPLETIONS // samples))
    given = {o.lstrip("+~").partition("=")[0] for o in overrides}
    arguments = [
        *("algorithm=reinforce", f"algorithm.group_size={samples}"),
        f"prompts_per_step={max(1, _ROWS_AT_ONCE // samples)}",
        *(
            "evaluation.kl=none",
            f"evaluation.num_prompts={prompts}",
            "run_dir=evaluation-of-nothing",
        ),
        f"evaluation.samples_per_prompt={samples}",
    ]
    if options.run is not None:
        arguments.append(f"init_from='{options.run}'")
    else:
        arguments.append(f"model.source='{options.model}'")
        if "task" not in given:
            raise ConfigError("rlkit eval --model must be given task=NAME, got none")
    own = options.run is not None and "task" not in given
    # Options of the run's own task mean nothing to the task that is composed here.
    ours = [o for o in overrides if own and o.lstrip("+~").startswith("task.")]
    (config, *others) = preflight([*arguments, *(o for o in overrides if o not in ours)])
    if others:
        raise ConfigError("rlkit eval takes one task, not a sweep")
    if own:
        config = _as_trained(config, options.run, ours, given)
    # A task of rows holds out at most `eval_size` of them; all were asked for.
    wants_all = not options.prompts and "task.eval_size" not in given
    if wants_all and isinstance(config.task, DataConfig):
        config = replace(config, task=replace(config.task, eval_size=_ALL))
    return config


def _as_trained(config: Config, run: Path, ours: Sequence[str], given: set[str]) -> Config:
    """Return `config` with the task, the rewards and the temperature of the run.

    Args:
        config: The configuration so far.
        run: The folder of the run.
        ours: Overrides of its task.
        given: The keys of all overrides; a reward among them stays.

    Returns:
        The configuration of the run's own evaluation.

    Raises:
        ConfigError: The folder holds no run, or an override is no option of its task.
    """
    found = read_finished_run(run, key="--run")
    saved: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    if found.task is None:
        raise ConfigError(f"--run must name a run with a task, got {run}")
    try:
        changed = OmegaConf.from_dotlist([o.lstrip("+").removeprefix("task.") for o in ours])
        task = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(found.task), changed))
        kept = OmegaConf.merge(OmegaConf.structured(RewardConfig), saved.get("reward") or {})
        reward = OmegaConf.to_object(kept)
    except OmegaConfBaseException as error:
        raise ConfigError(f"task: {str(error).splitlines()[0]}") from error
    assert isinstance(task, TaskConfig) and isinstance(reward, RewardConfig)
    sampling = replace(config.generator.sampling, temperature=found.sampling.temperature)
    config = replace(config, task=task, generator=replace(config.generator, sampling=sampling))
    if any(key.split(".")[0] == "reward" for key in given):
        return config
    return replace(config, reward=reward)


def _records(config: Config, name: str, *, paired: bool) -> list[EvalRecord]:
    """Return one evaluation, or that of the base model and then that of the run."""
    own = started(config, say=print)
    if not paired:
        return _evaluated(own, {name: _Adapter.own})
    if own.model.adapter is not None and own.model.adapter_use is AdapterUse.train:
        return _evaluated(own, {"base": _Adapter.off, name: _Adapter.own})
    # Nothing can be switched off: the base is another model.
    base = replace(config, init_from=None, model=_base_of(config))
    return [*_evaluated(base, {"base": _Adapter.own}), *_evaluated(own, {name: _Adapter.own})]


def _evaluated(config: Config, labels: Mapping[str, _Adapter]) -> list[EvalRecord]:
    """Load a model once, and evaluate it with its adapter as each label says."""
    with closing(assemble(config, say=print)) as run:
        watcher, stop = QuietTracker(), StopRequest()
        generator = run.generator(watcher, stop)
        evaluator = run.evaluator(generator, StoppableRewards(run.rewards, stop), watcher)
        learnt = {key: leaf.detach().clone() for key, leaf in run.policy.adapter.items()}
        records = []
        for version, (label, adapter) in enumerate(labels.items()):
            with torch.no_grad():
                for key, leaf in run.policy.adapter.items():
                    leaf.copy_(learnt[key] if adapter is _Adapter.own else torch.zeros_like(leaf))
            generator.load_adapter(run.policy.adapter, version)
            records.append(evaluator(label, 0))
        return records


def _base_of(config: Config) -> ModelConfig:
    """Return the model that the run began with."""
    values = yaml.safe_load((Path(str(config.init_from)) / "config.yaml").read_text())["model"]
    keys = ("source", "revision", "chat_template", "chat_template_name", "chat_template_kwargs")
    return replace(ModelConfig(), **{key: values[key] for key in keys}, tuning=TuningKind.lora)


def _print(records: Sequence[EvalRecord], samples: int) -> None:
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    console.print(result_table(records[0], records[-1]))
    names = [
        n for n in records[-1].metrics if "/low" not in n and f"{n}/low" in records[-1].metrics
    ]
    if not names:
        return
    table = Table()
    for title in ("", *(record.label for record in records)):
        table.add_column(title, justify="right" if title else "left")
    for name in names:
        table.add_row(name, *(_cell(record, name) for record in records))
    console.print(table)


def _cell(record: EvalRecord, name: str) -> str:
    mean, low, high = (record.metrics[f"{name}{end}"] for end in ("", "/low", "/high"))
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _as_json(records: Sequence[EvalRecord], config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {
        "task": config.task.name,
        "evaluations": [
            {
                "label": record.label,
                "measure": record.measure.value,
                "mean": record.interval.mean,
                "low": record.interval.low,
                "high": record.interval.high,
                "samples_per_prompt": record.samples_per_prompt,
                "prompt_keys": list(record.prompt_keys),
                "values": list(record.values),
                "metrics": dict(record.metrics),
            }
            for record in records
        ],
    }
    if len(records) > 1 and (paired := change(records[0], records[1])) is not None:
        found["change"] = paired._asdict()
    return found
