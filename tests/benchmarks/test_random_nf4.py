"""Random NF4 folders: what transformers loads from them is what was asked for, byte by byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.memory import tiny
from benchmarks.random_nf4 import write_nf4_folder
from rlkit.models.quantised import dense
from rlkit.models.quantize import quantisable, settle, tensors_of
from rlkit.plan.headline import ROWS


@pytest.mark.parametrize("row", ROWS[:3], ids=lambda row: row.family)
def test_a_folder_is_the_model_of_its_row(row: object, tmp_path: Path) -> None:
    headline = tiny(ROWS[ROWS.index(row)])
    written = write_nf4_folder(tmp_path, headline.hf_config())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert written == index["metadata"]["total_size"]
    assert {"model-00000.safetensors", "model-00004.safetensors"} <= set(
        index["weight_map"].values()
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    layers = quantisable(model)
    assert settle(model, torch.bfloat16) == len(layers) > 0
    assert sum(t.nbytes for t in tensors_of(model)) == headline.work().weight_bytes
    for layer in layers.values():
        weight = dense(layer.weight).float()
        assert weight.abs().max() == pytest.approx(0.05, rel=1e-2)
        assert weight.std() > 0.02  # every code occurs: NF4 of uniform codes is 0.026 wide
    with torch.no_grad():
        assert model(torch.arange(40)[None]).logits.std() > 0.1
    assert len(AutoTokenizer.from_pretrained(tmp_path)("ab").input_ids) == 2
    assert AutoConfig.from_pretrained(tmp_path).num_hidden_layers == 4
