"""Load the tokenizer of a model, with the chat template that it renders prompts by."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlkit.models.config import ModelConfig
from rlkit.models.convert import first_line
from rlkit.models.source import architecture_of, load_options, locate
from rlkit.models.templates import choose_template
from rlkit.runtime.say import Say


def load_tokenizer(config: ModelConfig, *, say: Say) -> PreTrainedTokenizerBase:
    """Return the tokenizer alone, with its chat template; raises as `load_model`."""
    architecture_of(config, say=say)
    return tokenizer_at(locate(config, say=say), config)[0]


def tokenizer_at(location: str, config: ModelConfig) -> tuple[PreTrainedTokenizerBase, str]:
    """Return the tokenizer with its chat template, and one line that says which."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            location, **load_options(config)
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.source must hold a tokenizer, got {location}: {first_line(error)}"
        ) from error
    chosen = choose_template(tokenizer, config)
    tokenizer.chat_template = chosen.template
    return tokenizer, chosen.reason
