"""This module checks what a reward model is told: `reward.functions.NAME.options`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path

from rlkit.models.config import DType
from rlkit.rewards import RewardSpec
from rlkit.rewards.kinds import of_their_kinds

ADAPTER_RECORD = "reward_model.json"
"""A folder with this file holds an adapter and a head, made by `rlkit reward-model`."""


class Placement(StrEnum):
    """This says where a classifier computes."""

    auto = "auto"
    """On the run's device."""
    cuda = "cuda"
    cpu = "cpu"
    process = "process"
    """In a process of its own, on the CPU: it is killed when it hangs."""


class EndToken(StrEnum):
    """This says whether a completion gets the end token that the reward model was trained with."""

    as_sampled = "as_sampled"
    """Unless it was cut at the length limit."""
    always = "always"
    never = "never"


class ChatFormat(StrEnum):
    """This says how prompt and completion become one text."""

    own = "own"
    """By the reward model's own chat template."""
    plain = "plain"
    """The text of the prompt, then that of the completion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModelOptions:
    """A reward model is told these; all but `source` have a default."""

    source: str = ""
    """Hub id or folder of a sequence classifier with one label, or a folder that
    `rlkit reward-model` made: then it computes on the policy's frozen base."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    device: Placement = Placement.auto
    dtype: DType = DType.auto
    """The backbone has this type; the head is always float32."""
    max_tokens_per_batch: int = 16384
    """Most tokens of one forward pass, padding included, >= 1; one row may have more."""
    max_length: int = 2048
    """Most tokens of a row, >= 2; what is longer loses its beginning and is counted."""
    eos: EndToken = EndToken.as_sampled
    chat: ChatFormat = ChatFormat.own
    timeout_s: float = 120.0
    """Seconds until a group is given up with `device: process`, > 0."""

    @property
    def is_adapter(self) -> bool:
        """Return whether it is a head on the policy's own base."""
        return (Path(self.source).expanduser() / ADAPTER_RECORD).is_file()


def reward_model_options(spec: RewardSpec) -> RewardModelOptions:
    """Return the options of a reward model; raises ValueError with one line."""
    key = f"reward.functions.{spec.name}.options"
    known = [f.name for f in fields(RewardModelOptions)]
    if unknown := [k for k in spec.options if k not in known]:
        raise ValueError(f"{key} must be among {', '.join(known)}, got {unknown[0]}")
    values = of_their_kinds(key, RewardModelOptions, spec.options)
    if not isinstance(values.get("revision"), str | None):
        raise ValueError(f"{key}.revision must be a text, got {values['revision']!r:.60}")
    choices: Mapping[str, type[StrEnum]] = {
        "device": Placement,
        "dtype": DType,
        "eos": EndToken,
        "chat": ChatFormat,
    }
    for option in values.keys() & choices.keys():
        kind = choices[option]
        if str(values[option]) not in list(kind):
            raise ValueError(f"{key}.{option} must be {' or '.join(kind)}, got {values[option]}")
        values[option] = kind(str(values[option]))
    options = RewardModelOptions(**values)
    if not options.source:
        raise ValueError(f"{key}.source must name a reward model, got nothing")
    for option, least in (("max_tokens_per_batch", 1), ("max_length", 2), ("timeout_s", 1e-9)):
        value = getattr(options, option)
        if value < least:
            rule = "> 0" if option == "timeout_s" else f">= {least}"
            raise ValueError(f"{key}.{option} must be {rule}, got {value}")
    return options
