"""This module reads what commands need of a finished run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlkit.config import DeviceChoice, schemas
from rlkit.generation import SamplingOptions
from rlkit.models import DType, ModelConfig, TuningKind
from rlkit.models.save import MODEL_FOLDER, left_to_fix
from rlkit.rewards import SpecialTokens
from rlkit.schema import Options
from rlkit.tasks import TaskConfig
from rlkit.training.memory_config import MemoryConfig

_DTYPES = {"float32": DType.fp32, "bfloat16": DType.bf16, "float16": DType.fp16}


@dataclass(kw_only=True, slots=True)
class RunOptions(Options):
    """This record holds what a run's config.yaml says about its model."""

    seed: int = MISSING
    device: DeviceChoice = MISSING
    model: ModelConfig = MISSING
    memory: MemoryConfig = MISSING


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """This record holds a run's model as it was trained, and how it was sampled and judged."""

    folder: Path
    options: RunOptions
    model: ModelConfig
    """It loads the model below the adapter, or the whole model of a run that trained all weights;
    its dtype is the one that the run computed in."""
    task: TaskConfig | None
    """None in a folder that does not say."""
    sampling: SamplingOptions
    special_tokens: SpecialTokens

    @property
    def has_adapter(self) -> bool:
        """Return whether the run trained an adapter, not all weights."""
        return self.options.model.tuning is TuningKind.lora


def read_options(run: Path, *, key: str) -> RunOptions:
    """Return the model that `run` trained; raises ValueError, naming `key`, if there is none."""
    return _options(_read(run, key), run, key)


def read_finished_run(run: Path, *, key: str) -> FinishedRun:
    """Return everything about the policy that `run` trained.

    Raises ValueError, naming `key`, when there is no such run.
    """
    values = _read(run, key)
    options = _options(values, run, key)
    model = options.model
    if model.tuning is TuningKind.full:
        model = replace(
            model,
            source=str(run / MODEL_FOLDER),
            revision=None,
            rope_length=left_to_fix(run / MODEL_FOLDER, model),
            adapter=None,
            adapter_use=type(model.adapter_use).train,
            # The folder's tokenizer was saved with the template that these chose.
            chat_template=type(model.chat_template).auto,
            chat_template_name="",
            chat_template_kwargs={},
        )
    generator = values.get("generator") or {}
    return FinishedRun(
        folder=run,
        options=options,
        model=replace(model, dtype=_dtype(model.dtype, run)),
        task=_task(values.get("task")),
        sampling=_known(SamplingOptions, generator.get("sampling") or {}),
        special_tokens=SpecialTokens((values.get("reward") or {}).get("special_tokens", "drop")),
    )


def _read(run: Path, key: str) -> dict[str, Any]:
    try:
        saved = yaml.safe_load((run / "config.yaml").read_text())
        if not isinstance(saved, dict):
            raise TypeError("config.yaml holds no options")
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise _no_run(run, key, error) from error
    return saved


def _options(saved: Mapping[str, Any], run: Path, key: str) -> RunOptions:
    try:
        values = {field.name: saved[field.name] for field in fields(RunOptions)}
        options = OmegaConf.to_object(OmegaConf.merge(RunOptions, values))
    except (KeyError, TypeError, OmegaConfBaseException) as error:
        raise _no_run(run, key, error) from error
    assert isinstance(options, RunOptions)
    return options


def _no_run(run: Path, key: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())
    return ValueError(f"{key} must be the folder of a run, got {run} ({reason})")


def _dtype(wanted: DType, run: Path) -> DType:
    """Return the dtype that `auto` meant where the run was trained, if its folder says."""
    if wanted is not DType.auto:
        return wanted
    try:
        record = json.loads((run / "run.json").read_text())
    except (OSError, ValueError):
        return wanted
    return _DTYPES.get(str(record.get("dtype")), wanted)


def _task(values: Mapping[str, Any] | None) -> TaskConfig | None:
    """Return the options of the task, whose class its name tells."""
    if not values:
        return None
    nodes = {schema.name: schema.node for schema in schemas() if schema.group == "task"}
    node = nodes.get(str(values.get("name")))
    if node is None:
        return None
    task = _known(node, values)
    assert isinstance(task, TaskConfig)
    return task


def _known(node: type[Any], values: Mapping[str, Any]) -> Any:
    """Return an object of `node` with those of `values` that it has a field for."""
    names = {field.name for field in fields(node)}
    kept = {name: value for name, value in values.items() if name in names}
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(node), kept))
