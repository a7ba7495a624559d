"""This module loads a sequence classifier of Hugging Face with one label, as a reward model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlkit.models.convert import first_line
from rlkit.models.quiet import no_progress_bars
from rlkit.models.resolved import resolve_dtype
from rlkit.reward_models.batches import LinearHead, ScoreBatch, at_last_token
from rlkit.reward_models.options import RewardModelOptions


def classifier_config(key: str, options: RewardModelOptions) -> PreTrainedConfig:
    """Return the classifier's config.

    Raises ValueError, one line that names `key`, when there is none or it is no reward model.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            options.source, revision=options.revision or "main"
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{key}.source must be a folder or a hub id that can be reached, got "
            f"{options.source}: {first_line(error)}"
        ) from error
    names = config.architectures or []
    if not any("SequenceClassification" in name for name in names):
        shown = ", ".join(names) or "no architecture"
        raise ValueError(
            f"{key}.source must be a sequence classifier, got {options.source} ({shown})"
        )
    if config.num_labels != 1:
        raise ValueError(
            f"{key}.source must have one label, the score, got {options.source} with "
            f"{config.num_labels}"
        )
    if config.is_encoder_decoder:
        raise ValueError(
            f"{key}.source must be a decoder or an encoder, got {options.source} with both"
        )
    return config


def classifier_tokenizer(key: str, options: RewardModelOptions) -> PreTrainedTokenizerBase:
    """Return the classifier's own tokenizer; raises ValueError with one line."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            options.source, revision=options.revision or "main"
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{key}.source must hold the reward model's own tokenizer, got {options.source}: "
            f"{first_line(error)}"
        ) from error
    return tokenizer


class Classifier:
    """A classifier gives every row of token ids a score."""

    def __init__(self, key: str, options: RewardModelOptions, device: torch.device) -> None:
        """Load the weights on `device`; raises ValueError with one line."""
        config = classifier_config(key, options)
        dtype, _ = resolve_dtype(options.dtype, device)
        self.model = _load(key, options, config, dtype)
        torch.nn.Module.to(self.model, device)
        self.model.requires_grad_(False).train(False)
        self.device = device
        self.pad_id = pad_id_of(config)
        self.score: ScoreBatch = _score_of(self.model)


def pad_id_of(config: PreTrainedConfig) -> int:
    """Return an id that has an embedding: the model's own pad token where it has one.

    Encoders such as RoBERTa count positions by it; for a decoder any id will do.
    """
    text = config.get_text_config()
    own = text.pad_token_id
    return own if isinstance(own, int) and 0 <= own < int(text.vocab_size) else 0


def check_padding(key: str, score: Any, rows: list[list[int]]) -> None:
    """Score a few rows alone and together; they must agree, or every batch would be noise.

    Args:
        key: Names the options in the message.
        score: (rows) to scores, in one batch.
        rows: Rows of different lengths.

    Raises:
        ValueError: A score depends on the padding beside it.
    """
    together = score(rows)
    alone = [score([row])[0] for row in rows]
    for a, b in zip(alone, together, strict=True):
        if not abs(a - b) <= 0.05 * (1.0 + abs(a)):
            raise ValueError(
                f"{key}.source must score a row alone as in a batch, got {a:.4g} and {b:.4g}"
            )


def _load(
    key: str, options: RewardModelOptions, config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    try:
        with no_progress_bars():
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                options.source,
                revision=options.revision or "main",
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{key}.source must hold a reward model's weights as safetensors, got "
            f"{options.source}: {first_line(error)}"
        ) from error
    model, report = loaded
    missing = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
    if missing:
        raise ValueError(
            f"{key}.source must hold every weight, the head's too, got {options.source} without "
            f"{', '.join(missing[:3])}"
        )
    return model  # type: ignore[no-any-return]


def _score_of(model: PreTrainedModel) -> ScoreBatch:
    """Return the forward pass: a float32 head at the last token of a decoder, else its own pooling.

    Decoders of transformers all call their head `score`, and find the last token by the pad id.
    An encoder pools at its first token, which padding on the right leaves in its place.
    """
    head = getattr(model, "score", None)
    if isinstance(head, nn.Linear):
        linear = LinearHead(
            head.weight.detach().float(), None if head.bias is None else head.bias.detach().float()
        )
        return partial(at_last_token, model.base_model, linear)

    def whole(ids: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
        return logits.squeeze(1)

    return whole
