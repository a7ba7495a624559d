"""This module finds what ends a completion of a model whose weights are not loaded."""

from __future__ import annotations

from transformers import GenerationConfig

from rlkit.config import Config
from rlkit.generation.vllm.config import VLLMGeneratorConfig
from rlkit.models.resolved import ResolvedModel
from rlkit.models.source import load_options
from rlkit.models.special import Stops, stop_token_ids, stops_of
from rlkit.models.vocabulary import with_rows
from rlkit.schema import require
from rlkit.tasks import Task


def stops_before_loading(config: Config, task: Task, model: ResolvedModel) -> Stops:
    """Return the stop tokens and strings of a run.

    Raises ValueError when a stop string can never match, or when vLLM is to guess tokens beside
    one. It looks for stop strings in a loop of its own, which has no guesses.
    """
    num_rows = int(model.hf_config.get_text_config().vocab_size)
    ends = with_rows(stop_token_ids(model.tokenizer, eos_of(model)), num_rows)
    found = stops_of(model.tokenizer, ends, (*task.stop, *config.generator.sampling.stop))
    generator = config.generator
    if isinstance(generator, VLLMGeneratorConfig) and generator.speculation.is_on:
        rule = f"[] with generator.speculation.kind={generator.speculation.kind.value} and vLLM"
        require(not found.strings, "task.stop", rule, list(found.strings))
    return found


def eos_of(model: ResolvedModel) -> int | list[int] | None:
    """Return the end tokens of the generation config, which a model without one takes from its
    own config."""
    try:
        found = GenerationConfig.from_pretrained(model.location, **load_options(model.config))
    except OSError:
        return model.hf_config.eos_token_id  # type: ignore[no-any-return]
    return found.eos_token_id  # type: ignore[no-any-return]
