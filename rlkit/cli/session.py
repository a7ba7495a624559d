"""`chat` and `generate` share this session: a model that is ready to sample.

The model may have an adapter. A run's model is asked as the run asked it: with its template, system
message, stops, dtype and sampling. The command line can change each of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlkit.assembly.saved_run import read_finished_run
from rlkit.cli import UsageError
from rlkit.generation import HFGeneratorConfig, SamplingOptions, sample_seed
from rlkit.generation.base import check_sampling
from rlkit.generation.hf import HFGenerator
from rlkit.models import ModelConfig, QuantConfig
from rlkit.models.load import load_model
from rlkit.models.special import stops_of
from rlkit.models.vocabulary import check_ids
from rlkit.policy.lora import LoRAConfig, attach
from rlkit.policy.lora_files import ADAPTER_FOLDER, load_adapter, read_adapter_config
from rlkit.tasks import Example, Message, PromptStyle
from rlkit.tasks.manner import Manner, manner_of
from rlkit.tasks.render import render
from rlkit.types import Generator, Rollout, SamplingConfig

_T = TypeVar("_T", int, float, str)
_MAX_TOKENS, _TEMPERATURE = 256, 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session holds a generator, its tokenizer and how it is asked."""

    generator: Generator
    tokenizer: PreTrainedTokenizerBase
    num_rows: int
    """The rows of the model's embedding."""
    sampling: SamplingConfig
    seed: int
    style: PromptStyle
    system: str
    """The system message of a conversation; empty = none."""

    def opening(self) -> list[Message]:
        """Return the turns before the user's first one."""
        return [Message("system", self.system)] if self.system else []

    def sample(
        self, prompt: str | Sequence[Message], *, num_samples: int, turn: int = 0
    ) -> list[Rollout]:
        """Return completions of a conversation, or of plain text, rendered as in training."""
        asked = prompt if isinstance(prompt, str) else tuple(prompt)
        rendered = render(Example(prompt=asked), self.tokenizer, index=turn)
        check_ids(rendered.ids, self.num_rows, where="the prompt", tokenizer=self.tokenizer)
        seeds = [[sample_seed(self.seed, 0, turn, i) for i in range(num_samples)]]
        (rollouts,) = self.generator.generate(
            [rendered], num_samples=num_samples, sampling=self.sampling, seeds=seeds
        )
        return rollouts

    def text(self, rollout: Rollout) -> str:
        """Return the completion without special tokens."""
        return str(
            self.tokenizer.decode(list(rollout.completion_ids), skip_special_tokens=True)
        ).strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """This record holds what the command line names: a model and how it is asked."""

    model: ModelConfig
    adapter: Path | None = None
    quant: QuantConfig
    sampling: SamplingOptions
    manner: Manner


def open_session(options: argparse.Namespace) -> Session:
    """Load what the options name; raises UsageError with one line when they do not fit."""
    try:
        if options.run is not None:
            if options.model or options.adapter or options.template_kwargs:
                raise UsageError(
                    "--run brings its own model, adapter and template variables: drop --model, "
                    "--adapter and --template-kwargs"
                )
            return _load(_of_run(options.run), options)
        model = ModelConfig(
            source=options.model or "starter", chat_template_kwargs=options.template_kwargs
        )
        asked = _Asked(
            model=model,
            adapter=options.adapter,
            quant=QuantConfig(),
            sampling=SamplingOptions(temperature=_TEMPERATURE),
            manner=Manner(),
        )
        return _load(asked, options)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def _of_run(run: Path) -> _Asked:
    """Return a run's model with the adapter on it; after full training, the model alone."""
    saved = read_finished_run(run, key="--run")
    return _Asked(
        model=saved.model,
        adapter=run / ADAPTER_FOLDER if saved.has_adapter else None,
        quant=saved.options.memory.quant if saved.has_adapter else QuantConfig(),
        sampling=saved.sampling,
        manner=manner_of(saved.task),
    )


def _load(asked: _Asked, options: argparse.Namespace) -> Session:
    sampling = _sampling(asked, options)
    config = LoRAConfig() if asked.adapter is None else read_adapter_config(asked.adapter)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = load_model(asked.model, device=device, say=print, quant=asked.quant)
    lora = attach(base.model, config, dtype=base.dtype)
    stops = stops_of(base.tokenizer, base.stop_ids, sampling.stop)
    generator = HFGenerator(
        base.model,
        base.tokenizer,
        activate=lora.active,
        stop_token_ids=stops.ids,
        config=HFGeneratorConfig(),
    )
    if asked.adapter is not None:
        tensors: dict[str, Tensor] = load_adapter(asked.adapter, lora, device=device)
        generator.load_adapter(tensors, 0)
    return Session(
        generator=generator,
        tokenizer=base.tokenizer,
        num_rows=base.num_rows,
        sampling=sampling._replace(stop=stops.strings),
        seed=options.seed,
        style=asked.manner.style,
        system=_given(options.system, asked.manner.system),
    )


def _sampling(asked: _Asked, options: argparse.Namespace) -> SamplingConfig:
    """Return the distribution of the command line over that of the run; it is checked here."""
    usual = asked.sampling
    temperature = _given(options.temperature, usual.temperature)
    greedy = temperature == 0.0  # the limit of small temperatures: the likeliest token
    sampling = SamplingConfig(
        max_completion_length=_given(options.max_tokens, asked.manner.max_tokens or _MAX_TOKENS),
        temperature=1.0 if greedy else temperature,
        top_p=_given(options.top_p, usual.top_p),
        top_k=1 if greedy else _given(options.top_k, usual.top_k),
        min_p=_given(options.min_p, usual.min_p),
        stop=tuple(dict.fromkeys((*usual.stop, *asked.manner.stop))),
    )
    check_sampling(sampling)
    return sampling


def _given(value: _T | None, otherwise: _T) -> _T:
    return otherwise if value is None else value
