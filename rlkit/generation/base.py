"""This module holds what all generators share: configuration, seeds, progress reports."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, NamedTuple, Self

from rlkit.generation.demand import EngineChoice, GeneratorDemand, Sampler
from rlkit.generation.speculation import SpeculationOptions, spare_columns
from rlkit.schema import Between, Options, Schema
from rlkit.types import Prompt, SamplingConfig


@dataclass(kw_only=True, slots=True)
class SamplingOptions(Options):
    """The distribution that completions are sampled from; see `rlkit.generation.sampling`."""

    temperature: float = 1.0
    """Divides the logits. > 0; 1 samples from the model itself, as DeepSeekMath's GRPO does."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability. In (0, 1]; 1 = off."""
    top_k: int = 0
    """Keep the `top_k` likeliest tokens. >= 0; 0 = off, 1 = greedy."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the likeliest one. In [0, 1); 0 = off."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a completion, beside the model's stop tokens; they stay part of it."""

    def __post_init__(self) -> None:
        check_sampling(sampling_config(self, max_completion_length=1), name="generator.sampling")


@dataclass(kw_only=True, slots=True)
class GeneratorConfig(Options):
    """Options of every generator; each engine derives its own class from this one."""

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """The sampling distribution, the same for every engine."""
    rounds_at_once: Annotated[int, Between(1, 16)] = 1
    """Rounds of prompts that are asked together with algorithm.group_filter=resample, in [1, 16].
    Above 1 the next prompts decode beside these rows, and what is not needed is dropped."""
    speculation: SpeculationOptions = field(default_factory=SpeculationOptions)
    """Guesses of the next tokens, checked in one pass; the samples stay the same."""

    def demand(self, *, row_tokens: int) -> GeneratorDemand:
        """Return what this generator takes of the device for rows of up to `row_tokens` tokens."""
        return GeneratorDemand(Sampler.elsewhere, max_at_once=1)

    def with_choice(self, choice: EngineChoice) -> Self:
        """Return a copy that asks for exactly what the memory plan gives."""
        return self

    def check_adapter_rank(self, rank: int) -> None:
        """Raise ValueError when this generator has no room for adapters of `rank`."""
        return

    @property
    def ranks_together(self) -> int:
        """Return the ranks of a run that sample together, as one engine; 1 = each has its own."""
        return 1

    def check_full_weights(self) -> None:
        """Raise ValueError when this generator cannot take weights that all train."""
        return

    def check_fp8_base(self) -> None:
        """Raise ValueError when this generator cannot sample with a base in 8 bits."""
        return

    @property
    def streams(self) -> bool:
        """Return whether completions may join while it decodes others."""
        return False


@dataclass(kw_only=True, slots=True)
class HFGeneratorConfig(GeneratorConfig):
    """This generator samples with transformers on the trainer's own weights, without a copy."""

    max_rows: int = 256
    """Most completions sampled at once. >= 1; beyond it a decoding step stops getting cheaper."""
    max_tokens: int = 65536
    """Most tokens, prompts and completions together, in the key-value cache at once. >= 1; a
    single completion always runs. 65536 tokens of Qwen2.5-1.5B are 1.9 GB in bfloat16."""
    check_every: int = 0
    """Decoding steps between looks at which completions have ended. >= 0; 0 = 1 on a CPU and 8 on
    an accelerator, where a look waits for the device. Changes no completion."""

    def __post_init__(self) -> None:
        for key, value, least in (
            ("max_rows", self.max_rows, 1),
            ("max_tokens", self.max_tokens, 1),
            ("check_every", self.check_every, 0),
        ):
            if value < least:
                raise ValueError(f"generator.{key} must be >= {least}, got {value}")

    def demand(self, *, row_tokens: int) -> GeneratorDemand:
        """Ask for keys and values of as many rows as `max_rows` and `max_tokens` allow."""
        at_once = max(1, min(self.max_rows, self.max_tokens // row_tokens))
        spare = spare_columns(row_tokens) if self.speculation.is_on else 0
        return GeneratorDemand(Sampler.hf, max_at_once=at_once, spare_tokens=spare)

    def with_choice(self, choice: EngineChoice) -> Self:
        """Return a copy that samples no more completions at once than the plan has room for."""
        return replace(self, max_rows=min(self.max_rows, choice.at_once))


@dataclass(kw_only=True, slots=True)
class AutoGeneratorConfig(GeneratorConfig):
    """vLLM in process on CUDA where it is installed, else transformers; a run says which."""

    @property
    def streams(self) -> bool:
        """Return True: what it means is checked once the device is known."""
        return True


SCHEMAS = (
    Schema("generator", "auto", AutoGeneratorConfig),
    Schema("generator", "hf", HFGeneratorConfig),
)


class Progress(NamedTuple):
    """A report of how far one call of `generate` is."""

    rows_done: int
    rows: int
    tokens: int
    """Completion tokens sampled so far."""


ProgressCallback = Callable[[Progress], None]


def sampling_config(
    options: SamplingOptions, *, max_completion_length: int, stop: Sequence[str] = ()
) -> SamplingConfig:
    """Return the `SamplingConfig` of `options`: immutable, with the length limit of the run.

    `stop` adds the stop strings of the task to those of `options`.
    """
    return SamplingConfig(
        max_completion_length=max_completion_length,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        stop=tuple(dict.fromkeys((*options.stop, *stop))),
    )


def check_sampling(sampling: SamplingConfig, *, name: str = "sampling") -> None:
    """Raise `ValueError` naming `{name}.key`, rule and value if `sampling` is out of range."""
    rules = (
        ("max_completion_length", sampling.max_completion_length >= 1, ">= 1"),
        ("temperature", 0.0 < sampling.temperature < float("inf"), "a finite number > 0"),
        ("top_p", 0.0 < sampling.top_p <= 1.0, "in (0, 1]"),
        ("top_k", sampling.top_k >= 0, ">= 0"),
        ("min_p", 0.0 <= sampling.min_p < 1.0, "in [0, 1)"),
        ("stop", all(sampling.stop), "non-empty strings"),
    )
    for key, holds, rule in rules:
        if not holds:
            raise ValueError(f"{name}.{key} must be {rule}, got {getattr(sampling, key)!r}")


def check_request(
    prompts: Sequence[Prompt],
    num_samples: int,
    sampling: SamplingConfig,
    seeds: Sequence[Sequence[int]],
    *,
    context: int | None,
) -> None:
    """Check that the arguments of `Generator.generate` fit and agree.

    Args:
        prompts: The prompts of the call, none of them empty.
        num_samples: The samples of each prompt, >= 0.
        sampling: The sampling distribution with the longest completion.
        seeds: One seed for each sample: [prompt][sample].
        context: The most tokens of prompt and completion together; None = no limit.

    Raises:
        ValueError: Something does not fit; the message names the argument, the rule and the value.
    """
    if num_samples < 0:
        raise ValueError(f"num_samples must be >= 0, got {num_samples}")
    if [len(row) for row in seeds] != [num_samples] * len(prompts):
        raise ValueError(
            f"seeds must hold {num_samples} seeds for each of {len(prompts)} prompts, "
            f"got {[len(row) for row in seeds]}"
        )
    for prompt in prompts:
        if not prompt.ids:
            raise ValueError(f"prompt {prompt.index} must have at least one token, got none")
        longest = prompt.most_tokens(sampling.max_completion_length)
        if longest < 1:
            raise ValueError(f"prompt {prompt.index} must leave a token to sample, got {longest}")
        needed = len(prompt.ids) + longest
        if context is not None and needed > context:
            raise ValueError(
                f"sampling.max_completion_length must be <= {context - len(prompt.ids)} for prompt "
                f"{prompt.index} ({len(prompt.ids)} tokens; the model's context is {context}), "
                f"got {longest}"
            )


def sample_seed(
    run_seed: int, step: int, prompt_index: int, sample_index: int, occurrence: int = 0
) -> int:
    """Return the seed of one completion: a pure 63-bit hash of where it stands in the run.

        seed = first 8 bytes, little-endian, of BLAKE2b(run_seed, step, prompt_index, sample_index
               as 4 little-endian int64; digest 8 bytes, person "rlkit.sample"), shifted right by 1

    A prompt that comes again within a step has its `occurrence` (1, 2, ...) hashed as a fifth int64
    so that its samples differ from the first ones. Nothing is drawn from a running state, so a
    resumed run samples what an uninterrupted one would. Neither batch order nor group size changes
    the seed of a given completion.

    Args:
        run_seed: The seed of the run.
        step: The number of the step, from 0 on.
        prompt_index: The number of the prompt in its split.
        sample_index: The number of the sample in its group, from 0 on.
        occurrence: How often the step had this prompt before, >= 0.

    Returns:
        A seed in [0, 2**63), which the seed type of every engine holds.

    Raises:
        struct.error: An argument does not fit an int64.
    """
    place = [run_seed, step, prompt_index, sample_index, *([occurrence] if occurrence else [])]
    return _hashed(place, person=b"rlkit.sample")


def turn_seed(seed: int, turn: int) -> int:
    """Return the seed of a turn of an episode whose first turn has `seed`.

    Turn 0 keeps the seed of a single completion. A later one hashes (seed, turn) as two int64 under
    the person "rlkit.turn", so it is a function of run, step, prompt, sample and turn.
    """
    return seed if turn == 0 else _hashed([seed, turn], person=b"rlkit.turn")


def environment_seed(seed: int) -> int:
    """Return the environment's seed for a group whose first sample has `seed`.

    All samples of a group meet the same environment, which lowers the spread of their differences.
    """
    return _hashed([seed], person=b"rlkit.env")


def _hashed(numbers: Sequence[int], *, person: bytes) -> int:
    key = struct.pack(f"<{len(numbers)}q", *numbers)
    digest = hashlib.blake2b(key, digest_size=8, person=person).digest()
    return int.from_bytes(digest, "little") >> 1
