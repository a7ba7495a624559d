"""Which generator `auto` means, on devices that need not be there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlkit.assembly import load as engines
from rlkit.generation import HFGeneratorConfig, VLLMGeneratorConfig
from rlkit.generation.vllm.config import Quantization
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight


@pytest.mark.parametrize("memory", ["auto", "qlora"])
@pytest.mark.parametrize(
    ("device", "installed", "kind", "reason"),
    [
        ("cuda", True, VLLMGeneratorConfig, "a CUDA device, and vLLM is installed"),
        ("cuda", False, HFGeneratorConfig, "vLLM is not installed"),
        ("cpu", True, HFGeneratorConfig, "the device is cpu"),
    ],
)
def test_auto(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    memory: str,
    device: str,
    installed: bool,
    kind: type,
    reason: str,
) -> None:
    register()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engines, "is_installed", lambda: installed)
    (config,) = preflight(["generator.sampling.top_k=7", f"memory={memory}", "run_dir=new"])
    said: list[str] = []
    chosen = engines.choose_generator(config, torch.device(device), say=said.append)
    assert type(chosen) is kind and chosen.sampling.top_k == 7
    assert len(said) == 1 and reason in said[0]
    if isinstance(chosen, VLLMGeneratorConfig):
        assert chosen.quantization is Quantization.none  # as the trainer has it
    # What is chosen already stays.
    config = replace(config, generator=chosen)
    assert engines.choose_generator(config, torch.device("cpu"), say=said.append) is chosen
