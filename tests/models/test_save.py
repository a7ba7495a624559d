"""The folder of a run that trained all weights says itself how the run rotated its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import random_ids, tiny_model
from tiny_tokenizers import byte_level_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlkit.models.config import ModelConfig
from rlkit.models.rope import fix_factors
from rlkit.models.save import left_to_fix, save_model

_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 32,
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite"),
    *("gemma", "gemma2", "gemma3_text", "phi", "phi3"),
)


def _saved(model: PreTrainedModel, folder: Path, rope_length: int | None) -> Path:
    weights = dict(model.named_parameters())
    save_model(folder, model, byte_level_tokenizer(), weights, rope_length=rope_length)
    return folder


def _logits(model: Any, length: int) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([random_ids(length, seed=1)])).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_comes_back_as_it_was(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, dtype=torch.float32)
    folder = _saved(model, tmp_path / "model", None)
    config: Any = AutoConfig.from_pretrained(folder)
    changed = {
        key: (value, config.to_dict().get(key))
        for key, value in model.config.to_dict().items()
        if config.to_dict().get(key) != value
    }
    # The writer names the class, the dtype of the weights and its own version.
    assert changed.keys() <= {"architectures", "dtype", "_name_or_path", "transformers_version"}
    assert config.rope_parameters == model.config.rope_parameters
    loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model.set_attn_implementation("eager")
    torch.testing.assert_close(_logits(loaded, 12), _logits(model, 12))


@pytest.mark.parametrize(
    ("family", "rope", "length"),
    [
        *(("phi3", _LONG, length) for length in (16, 400)),
        *(("llama", _DYNAMIC, length) for length in (16, 64)),
    ],
)
def test_short_rows_keep_the_factors_that_the_run_gave_them(
    family: str, rope: dict[str, Any], length: int, tmp_path: Path
) -> None:
    """Any library that loads the folder computes what the run did, at rows that change nothing."""
    options: dict[str, Any] = {"rope_parameters": dict(rope), "max_position_embeddings": 512}
    if family == "phi3":
        options["original_max_position_embeddings"] = 32
    else:
        options["max_position_embeddings"] = 32
    model = tiny_model(family, dtype=torch.float32, **options)
    base = _logits(model, 20)
    fix_factors(model, length)
    folder = _saved(model, tmp_path / "model", length)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(_logits(loaded, 20), _logits(model, 20), atol=1e-5, rtol=1e-5)
    assert torch.allclose(_logits(loaded, 20), base, atol=1e-4) == (length == 16)


@pytest.mark.parametrize(("rope", "left"), [(_LONG, 64), (_DYNAMIC, None)])
def test_what_a_run_on_the_folder_still_has_to_fix(
    rope: dict[str, Any], left: int | None, tmp_path: Path
) -> None:
    family = "phi3" if rope is _LONG else "llama"
    options: dict[str, Any] = {"rope_parameters": dict(rope), "max_position_embeddings": 32}
    if family == "phi3":
        options["original_max_position_embeddings"] = 32
    model = tiny_model(family, dtype=torch.float32, **options)
    asked = ModelConfig(rope_length=64)
    new = _saved(model, tmp_path / "new", 64)
    assert left_to_fix(new, asked) == left
    older = _saved(model, tmp_path / "older", None)
    assert left_to_fix(older, asked) == 64
    assert left_to_fix(tmp_path / "gone", asked) == 64
    assert left_to_fix(new, ModelConfig()) is None
