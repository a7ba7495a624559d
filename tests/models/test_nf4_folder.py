"""The NF4 folder of a model: made once, the same blocks as quantising while loading."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from rlkit.models import DType, ModelConfig, QuantConfig, QuantKind
from rlkit.models.config import ChatTemplate
from rlkit.models.load import load_model
from rlkit.models.nf4_folder import in_nf4
from rlkit.models.quantize import quantisable, tensors_of
from rlkit.models.resolved import resolve_model

CPU = torch.device("cpu")
NF4 = QuantConfig(kind=QuantKind.nf4)


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> ModelConfig:
    return ModelConfig(source=str(folder), cache_dir=str(tmp_path), dtype=DType.bf16)


def made(config: ModelConfig, quant: QuantConfig = NF4) -> tuple[ModelConfig, bool]:
    """The folder's config, and whether it was made now."""
    said: list[str] = []
    model = resolve_model(config, device=CPU, say=print)
    found = in_nf4(model, quant, say=said.append)
    assert found.location == found.config.source
    return found.config, any("Quantising" in line for line in said)


@pytest.mark.parametrize("skip", [(), ("layers.0.mlp.up_proj",)])
def test_the_folder_holds_what_loading_quantises(config: ModelConfig, skip: Sequence[str]) -> None:
    quant = replace(NF4, skip=list(skip))
    found, _ = made(config, quant)
    stored = load_model(found, device=CPU, say=print).model
    direct = load_model(config, device=CPU, say=print, quant=quant).model
    assert len(quantisable(stored)) == len(quantisable(direct)) > 0
    for name, layer in quantisable(stored).items():
        its = quantisable(direct)[name]
        assert type(layer) is type(its)
        assert (type(layer) is torch.nn.Linear) == (
            "layers.0.mlp." in name
            and bool(skip)
            and (
                "up_proj" in name or "gate_proj" in name  # vLLM fuses the two
            )
        )
        for mine, other in zip(tensors_of(layer), tensors_of(its), strict=True):
            assert torch.equal(mine, other), name
    others = {n: p for n, p in direct.named_parameters() if p.is_floating_point()}
    for name, parameter in others.items():
        assert torch.equal(stored.get_parameter(name), parameter), name


def test_it_is_made_once_for_each_model_and_choice(config: ModelConfig) -> None:
    first, new = made(config)
    assert new and made(config) == (first, False)
    assert first.lora == config.lora and first.revision is None
    sources = {first.source}
    for other, quant in (
        (config, replace(NF4, double_quant=False)),
        (config, replace(NF4, skip=["down_proj"])),
        (replace(config, dtype=DType.fp32), NF4),
    ):
        found, new = made(other, quant)
        assert new
        sources.add(found.source)
    assert len(sources) == 4
    # Layers of one unit are kept together: the same choice by another name.
    gate, new = made(config, replace(NF4, skip=["gate_proj"]))
    assert new and made(config, replace(NF4, skip=["up_proj"])) == (gate, False)
    # Another model behind the same path.
    weights = next(Path(config.source).glob("*.safetensors"))
    stat = weights.stat()
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    try:
        assert made(config)[1]
    finally:
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_folder_in_nf4_is_its_own(config: ModelConfig) -> None:
    first, _ = made(config)
    assert made(first) == (first, False)
    with pytest.raises(
        ValueError, match=r"memory\.quant\.skip must be empty for a checkpoint that"
    ):
        made(first, replace(NF4, skip=["down_proj"]))
    with pytest.raises(ValueError, match=r"memory\.quant\.skip must name linear layers"):
        made(config, replace(NF4, skip=["nowhere"]))


def test_the_tokenizer_is_the_models_own(config: ModelConfig) -> None:
    """Not as a run has it: the next run may choose another chat template."""
    found, _ = made(replace(config, chat_template=ChatTemplate.rlkit_plain))
    mine, its = (AutoTokenizer.from_pretrained(c.source) for c in (found, config))
    assert mine.chat_template == its.chat_template
    assert mine.get_vocab() == its.get_vocab()
