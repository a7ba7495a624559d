"""The update bench measures rlkit's own score and update, on weights that lie as in an engine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import random_ids, tiny_model

from benchmarks import update
from rlkit.models.joined import adjoined


def test_weights_lie_like_an_engines_and_keep_their_values() -> None:
    model = tiny_model("qwen2")
    ids = torch.tensor([random_ids(9, seed=1)])
    before = model(input_ids=ids).logits
    update.lay_like_an_engine(model)
    for layer in (
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "mlp.gate_proj mlp.up_proj",
    ):
        parts = [model.get_parameter(f"model.layers.1.{name}.weight") for name in layer.split()]
        assert adjoined(parts) is not None
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_row_for_each_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "update.json"
    arguments = ["--tiny", "--tokens=300,600", "--repetitions=1", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", ["update", *arguments])
    assert update.main() == 0
    report = json.loads(out.read_text())
    assert report["command"] == "python -m benchmarks.update " + " ".join(arguments)
    assert list(report["results"]) == [
        f"{mode}, {tokens} tokens" for mode in ("off", "on") for tokens in (300, 600)
    ]
    printed = capsys.readouterr().out.splitlines()
    for line, (name, found) in zip(printed[2:], report["results"].items(), strict=True):
        assert min(found["score_ms"], found["update_ms"]) > 0
        assert line == f"| {name} | {found['score_ms']:.1f} | {found['update_ms']:.1f} | 0.0 |"
