"""These are the options of tabular policies, their prompts and their sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from rlkit.generation import GeneratorConfig
from rlkit.generation.speculation import refuse_speculation
from rlkit.models import ModelConfig
from rlkit.schema import Between, Schema, require
from rlkit.tasks import TaskConfig

_MAX_COMPLETIONS = 20_000


@dataclass(kw_only=True, slots=True)
class TabularModelConfig(ModelConfig):
    """A table of logits has one row for each prompt and prefix, in float64.

    The inherited options of language models have no effect and must stay at their defaults.
    """

    source: str = "tabular"
    """Fixed."""
    vocabulary: int = 4
    """Words, >= 2; word 0 ends a completion."""
    reference_scale: Annotated[float, Between(0.0, 1e6)] = 1.0
    """Standard deviation of the reference's logits, in [0, 1e6]. 0 = uniform over words."""
    reference_seed: int = 0
    """Draws the reference's logits, >= 0; independent of the run seed."""

    def __post_init__(self) -> None:
        ModelConfig.__post_init__(self)
        only_default("model", self, ModelConfig(source="tabular"), but=())
        require(self.vocabulary >= 2, "model.vocabulary", ">= 2", self.vocabulary)
        scale = self.reference_scale
        require(0 <= scale < float("inf"), "model.reference_scale", ">= 0 and finite", scale)
        require(self.reference_seed >= 0, "model.reference_seed", ">= 0", self.reference_seed)


@dataclass(kw_only=True, slots=True)
class TabularTaskConfig(TaskConfig):
    """Prompts 0, 1, ... have a reward of 0 or 1 for each completion, drawn once from `seed`.

    Training and evaluation use the same prompts. `max_completion_length` is T of the table.
    """

    name: str = "tabular"
    max_completion_length: int = 4
    """T >= 1; a completion without an end has T words."""
    num_prompts: Annotated[int, Between(1, 100_000)] = 8
    """In [1, 100000]."""
    densities: list[float] = field(default_factory=lambda: [0.25])
    """Share of completions with reward 1, each in (0, 1); prompt i has number i modulo their
    count, so several densities mix difficulties. Every prompt has at least one right answer."""

    def __post_init__(self) -> None:
        TaskConfig.__post_init__(self)
        only_default("task", self, TaskConfig(), but=("name", "seed", "max_completion_length"))
        require(self.num_prompts >= 1, "task.num_prompts", ">= 1", self.num_prompts)
        valid = bool(self.densities) and all(0.0 < d < 1.0 for d in self.densities)
        require(valid, "task.densities", "numbers in (0, 1)", self.densities)


@dataclass(kw_only=True, slots=True)
class TabularGeneratorConfig(GeneratorConfig):
    """Completions come from the table, or from one with fixed errors, as a quantised engine has."""

    logit_noise: Annotated[float, Between(0.0, 1e6)] = 0.0
    """Standard deviation of errors added to the sampler's logits, in [0, 1e6]; the same over the
    run."""
    noise_seed: int = 0
    """Draws the errors, >= 0; independent of the run seed."""

    def __post_init__(self) -> None:
        noise = self.logit_noise
        require(0 <= noise < float("inf"), "generator.logit_noise", ">= 0 and finite", noise)
        require(self.noise_seed >= 0, "generator.noise_seed", ">= 0", self.noise_seed)
        refuse_speculation(self.speculation, where="generator=tabular")
        options = self.sampling
        for key, value, off in (
            ("top_p", options.top_p, 1.0),
            ("top_k", options.top_k, 0),
            ("min_p", options.min_p, 0.0),
            ("stop", list(options.stop), []),
        ):
            rule = f"{off} with generator=tabular, whose expectations are of the whole policy"
            require(value == off, f"generator.sampling.{key}", rule, value)


def only_default(group: str, config: object, defaults: object, *, but: Sequence[str]) -> None:
    """Refuse an option that a table does not have.

    Args:
        group: The group of the options.
        config: The options as they were set.
        defaults: The options as they are by default.
        but: Keys that a table has as well.

    Raises:
        ValueError: An option beside these differs from its default.
    """
    for key in type(defaults).__dataclass_fields__:  # type: ignore[attr-defined]
        value, default = getattr(config, key), getattr(defaults, key)
        if key not in but and value != default:
            raise ValueError(f"{group}.{key} has no effect with {group}=tabular, got {value}")


def check_size(model: TabularModelConfig, task: TabularTaskConfig) -> None:
    """Raise ValueError when there are too many completions to enumerate."""
    words, length = model.vocabulary - 1, task.max_completion_length
    count = sum(words**t for t in range(length)) + words**length
    if count > _MAX_COMPLETIONS:
        raise ValueError(
            f"task.max_completion_length must leave at most {_MAX_COMPLETIONS} completions with "
            f"model.vocabulary={model.vocabulary}, got {length}: {count}"
        )


SCHEMAS = (
    Schema("model", "tabular", TabularModelConfig),
    Schema("task", "tabular", TabularTaskConfig),
    Schema("generator", "tabular", TabularGeneratorConfig),
)
