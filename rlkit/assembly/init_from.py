"""A run may start from what another run learnt: `init_from` becomes options of its model.

The new run's reference policy is the model where it starts, so its KL begins at 0.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from rlkit.assembly.saved_run import read_options
from rlkit.config import Config, ConfigError
from rlkit.models.config import AdapterUse, LoRAConfig, ModelConfig, TuningKind
from rlkit.models.peft_config import read_adapter_config
from rlkit.models.resolved import resolve_model, with_merged_adapter
from rlkit.models.save import MODEL_FOLDER, left_to_fix
from rlkit.policy.lora_files import ADAPTER_FOLDER
from rlkit.runtime.say import Say

_TAKEN = (
    *("source", "revision", "allow_remote_code", "rope_length"),
    *("chat_template", "chat_template_name", "chat_template_kwargs"),
)
"""Options that the new run takes over, so that prompts and weights fit each other."""


def started(config: Config, *, say: Say) -> Config:
    """Return `config` with the model that `init_from` names; unchanged without it.

    An adapter of the same shape, or with `model.lora` left at its defaults, trains on. An adapter
    of another shape than the one that `model.lora` asks for is merged into its model, and a new
    adapter begins. With `model.tuning=full` it is merged as well.

    Args:
        config: The run's configuration.
        say: Gets a line on where the run starts.

    Returns:
        The configuration that loads what the other run learnt.

    Raises:
        ConfigError: There is no finished run, or an option of the model contradicts it.
    """
    if config.init_from is None:
        return config
    run = Path(config.init_from).expanduser()
    if not isinstance(config.model, ModelConfig) or type(config.model) is not ModelConfig:
        raise ConfigError(f"init_from must be unset with model=tabular, got {run}")
    saved = _saved_model(run)
    adapter = run / ADAPTER_FOLDER
    if saved.tuning is TuningKind.full:
        # Its tokenizer was saved with the run's template, variables included.
        learnt = ModelConfig(
            source=str(run / MODEL_FOLDER),
            rope_length=left_to_fix(run / MODEL_FOLDER, saved),
            allow_remote_code=saved.allow_remote_code,
        )
        asked = config.model
        if asked.rope_length == saved.rope_length:  # the folder's config may have them already
            asked = replace(asked, rope_length=learnt.rope_length)
        model = _taken_over(asked, learnt, run, adapter=None, use=AdapterUse.train)
    else:
        base = _without_merged(saved, say)
        use = _use_of(config.model, adapter)
        model = _taken_over(config.model, base, run, adapter=str(adapter), use=use)
    place = "its model" if model.adapter is None else f"its adapter, {_done(model)}"
    say(f"starts from {run}: {place}")
    return replace(config, model=model)


def _taken_over(
    asked: ModelConfig, learnt: ModelConfig, run: Path, *, adapter: str | None, use: AdapterUse
) -> ModelConfig:
    """Return `asked` with what must be the other run's; refuse what contradicts it."""
    default = ModelConfig()
    for name in _TAKEN:
        wanted, theirs = getattr(asked, name), getattr(learnt, name)
        if wanted not in (theirs, getattr(default, name)):
            raise ConfigError(
                f"model.{name} must be left as it is with init_from={run} ({theirs}), got {wanted}"
            )
    if asked.adapter not in (None, adapter):
        raise ConfigError(f"model.adapter must be unset with init_from={run}, got {asked.adapter}")
    taken = {name: getattr(learnt, name) for name in _TAKEN}
    return replace(asked, **taken, adapter=adapter, adapter_use=use)


def _use_of(asked: ModelConfig, adapter: Path) -> AdapterUse:
    """Return whether the adapter trains on or is merged, by the shape that is asked for."""
    if asked.tuning is TuningKind.full:
        return AdapterUse.merge
    shape = replace(read_adapter_config(adapter), dtype=asked.lora.dtype)
    fits = asked.lora in (shape, LoRAConfig(dtype=asked.lora.dtype))
    return AdapterUse.train if fits else AdapterUse.merge


def _done(model: ModelConfig) -> str:
    return {
        AdapterUse.train: "which trains on",
        AdapterUse.merge: "merged into its model, as model.lora or model.tuning asks for another",
    }[model.adapter_use]


def _without_merged(saved: ModelConfig, say: Say) -> ModelConfig:
    """Return the model that the run's own adapter belongs to: an older adapter is in its base."""
    if saved.adapter is None or saved.adapter_use is AdapterUse.train:
        return replace(saved, adapter=None)
    found = resolve_model(saved, device=torch.device("cpu"), say=say)
    merged = with_merged_adapter(found, say=say).location
    return replace(saved, source=merged, revision=None, adapter=None, adapter_use=AdapterUse.train)


def _saved_model(run: Path) -> ModelConfig:
    """Return the model of a finished run; raises ConfigError where there is none."""
    try:
        model = read_options(run, key="init_from").model
        status = json.loads((run / "status.json").read_text())["status"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        text = str(error)
        if not text.startswith("init_from"):
            text = f"init_from must be the folder of a run, got {run} ({text})"
        raise ConfigError(text) from error
    if status != "completed":
        raise ConfigError(f"init_from must be a completed run, got {run}, which is {status}")
    folder = MODEL_FOLDER if model.tuning is TuningKind.full else ADAPTER_FOLDER
    if not (run / folder).is_dir():
        raise ConfigError(
            f"init_from must be a run of a language model, got {run} without {folder}/"
        )
    return model
