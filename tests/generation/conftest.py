"""One vLLM engine for all tests of this folder: the starter model in float32 on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from vllm_models import LEAVES

from rlkit.generation import VLLMGeneratorConfig
from rlkit.generation.vllm.config import Weights, is_installed
from rlkit.models.config import ModelConfig
from rlkit.models.source import locate


@pytest.fixture(scope="session")
def starter() -> str:
    """Folder of SmolLM2-135M-Instruct in Hugging Face format."""
    # A machine without a registry has the model as a file.
    source = os.environ.get("RLKIT_SMOLLM2_GGUF", "starter")
    return str(locate(ModelConfig(source=source), say=print))


@pytest.fixture(scope="session")
def engine(starter: str) -> Iterator[object]:
    """rlkit's engine on the starter: rank-16 adapters on every linear layer, 512 tokens."""
    if not is_installed():
        pytest.skip("vLLM is not installed")
    from rlkit.generation.vllm.engine import start_engine
    from rlkit.generation.vllm.spec import EngineSpec

    spec = EngineSpec(
        location=starter,
        revision=None,
        hf_config=AutoConfig.from_pretrained(starter),
        dtype=torch.float32,
        device=torch.device("cpu"),
        max_prompt_length=384,
        max_completion_length=128,
        rows=16,
        lora_rank=16,
        lora_modules=LEAVES,
    )
    engine = start_engine(VLLMGeneratorConfig(weights=Weights.shared), spec, say=print)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def starter_hf(starter: str) -> PreTrainedModel:
    """The starter as transformers loads it from the files, independent of the engine."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        starter, dtype=torch.float32, attn_implementation="sdpa"
    )
    model.train(False)
    return model
