"""Load the tokenizer of a model, with the chat template that it renders prompts by."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from rlkit.models.config import ModelConfig
from rlkit.models.convert import first_line
from rlkit.models.source import load_options
from rlkit.models.templates import choose_template


def tokenizer_at(
    location: str, config: ModelConfig, hf_config: PreTrainedConfig
) -> tuple[PreTrainedTokenizerBase, str]:
    """Return the tokenizer with its chat template and a pad token, and one line on the template.

    Raises ValueError, with one line, when there is none or the template does not fit.
    """
    try:
        # Without `config` transformers would read the architecture once more.
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            location, config=hf_config, **load_options(config)
        )
    except Exception as error:  # tokenizers raises bare Exception on a broken file
        raise ValueError(
            f"model.source must hold a tokenizer, got {location}: {first_line(error)}"
        ) from error
    chosen = choose_template(tokenizer, config)
    tokenizer.chat_template = chosen.template
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, chosen.reason
