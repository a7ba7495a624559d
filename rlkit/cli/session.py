"""`chat` and `generate` share this session: a model that is ready to sample.

The model may have an adapter.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlkit.assembly.saved_run import read_finished_run
from rlkit.cli import UsageError
from rlkit.generation import HFGeneratorConfig, sample_seed
from rlkit.generation.hf import HFGenerator
from rlkit.models import ModelConfig, QuantConfig
from rlkit.models.load import load_model
from rlkit.models.vocabulary import check_ids
from rlkit.policy.lora import LoRAConfig, attach
from rlkit.policy.lora_files import ADAPTER_FOLDER, load_adapter, read_adapter_config
from rlkit.types import Generator, Prompt, Rollout, SamplingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session holds a generator, its tokenizer and the sampling options of the command line."""

    generator: Generator
    tokenizer: PreTrainedTokenizerBase
    num_rows: int
    """The rows of the model's embedding."""
    sampling: SamplingConfig
    seed: int

    def sample(self, text: str, *, num_samples: int, turn: int = 0) -> list[Rollout]:
        """Return completions of `text`, which holds its special tokens already."""
        ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        prompt = Prompt(index=turn, ids=ids, text=text)
        check_ids(ids, self.num_rows, where="the prompt", tokenizer=self.tokenizer)
        seeds = [[sample_seed(self.seed, 0, turn, i) for i in range(num_samples)]]
        (rollouts,) = self.generator.generate(
            [prompt], num_samples=num_samples, sampling=self.sampling, seeds=seeds
        )
        return rollouts

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the text of a conversation under the model's chat template, ready for a reply."""
        return str(
            self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=True
            )
        )

    def text(self, rollout: Rollout) -> str:
        """Return the completion without special tokens."""
        return str(
            self.tokenizer.decode(list(rollout.completion_ids), skip_special_tokens=True)
        ).strip()


def open_session(options: argparse.Namespace) -> Session:
    """Load what the options name; raises UsageError with one line when they do not fit."""
    try:
        if options.run is not None:
            if options.model or options.adapter or options.template_kwargs:
                raise UsageError(
                    "--run brings its own model, adapter and template variables: drop --model, "
                    "--adapter and --template-kwargs"
                )
            return _load(*_of_run(options.run), options)
        model = ModelConfig(
            source=options.model or "starter", chat_template_kwargs=options.template_kwargs
        )
        return _load(model, options.adapter, QuantConfig(), options)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def _of_run(run: Path) -> tuple[ModelConfig, Path | None, QuantConfig]:
    """Return its model and the adapter on it; after full training, the run's own model alone."""
    saved = read_finished_run(run, key="--run")
    if not saved.has_adapter:
        return saved.model, None, QuantConfig()
    return saved.model, run / ADAPTER_FOLDER, saved.options.memory.quant


def _load(
    model: ModelConfig, folder: Path | None, quant: QuantConfig, options: argparse.Namespace
) -> Session:
    adapter_config = LoRAConfig() if folder is None else read_adapter_config(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = load_model(model, device=device, say=print, quant=quant)
    lora = attach(base.model, adapter_config, dtype=base.dtype)
    generator = HFGenerator(
        base.model,
        base.tokenizer,
        activate=lora.active,
        stop_token_ids=base.stop_ids,
        config=HFGeneratorConfig(),
    )
    if folder is not None:
        tensors: dict[str, Tensor] = load_adapter(folder, lora, device=device)
        generator.load_adapter(tensors, 0)
    greedy = options.temperature == 0.0  # the limit of small temperatures: the likeliest token
    sampling = SamplingConfig(
        max_completion_length=options.max_tokens,
        temperature=1.0 if greedy else options.temperature,
        top_p=options.top_p,
        top_k=1 if greedy else options.top_k,
    )
    return Session(
        generator=generator,
        tokenizer=base.tokenizer,
        num_rows=base.num_rows,
        sampling=sampling,
        seed=options.seed,
    )
