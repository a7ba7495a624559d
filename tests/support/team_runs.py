"""Two ranks that are one vLLM engine, on the CPU: what they sample, and what they hold."""

from __future__ import annotations

import json
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from vllm_models import LEAVES, SCALE, key, linear_layers, random_lora

from rlkit.generation.vllm.config import VLLMGeneratorConfig
from rlkit.generation.vllm.engine import Engine, start_engine
from rlkit.generation.vllm.lora import LoRAInjector, Mode
from rlkit.generation.vllm.probe import sample
from rlkit.generation.vllm.spec import EngineSpec
from rlkit.generation.vllm.team import Team, free_port
from rlkit.ranks import Ranks

RANK = 16


def adapters(ranks: Ranks, *folders: str) -> list[dict[str, Any]]:
    """Of each model: what two adapters, by every way into vLLM, make of the probe prompts.

    `wrong` are the factors that vLLM holds otherwise, after the right adapter and after another.
    """
    return [_of_model(ranks, folder) for folder in folders]


def _of_model(ranks: Ranks, folder: str) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    leaves = sorted({name.rsplit(".", 1)[-1] for name in linear_layers(model, _LEAVES)})
    layers = linear_layers(model, _LEAVES)
    engine = _start(ranks, folder, tuple(leaves))
    injector = LoRAInjector(engine.llm, layers, rank=RANK, scale=SCALE, key=key)
    found: dict[str, Any] = {"summary": engine.summary, "samples": {}}
    for number, mode in enumerate(Mode):
        injector.mode = mode
        for seed in (1, 2):
            adapter = random_lora(model, layers, rank=RANK, seed=seed)
            injector.load(adapter, 2 * number + seed)
            rows, logps = sample(engine.llm, injector.request)
            found["samples"][f"{mode.value} {seed}"] = [[list(row) for row in rows], logps]
        if mode is Mode.in_place:
            other = random_lora(model, layers, rank=RANK, seed=3)
            found["wrong"] = [len(injector.differences(each)) for each in (adapter, other)]
            found["held"] = sum(t.numel() for t in injector.slot().values())
        injector.unload()
    engine.close()
    return found


_LEAVES = (*LEAVES, "qkv_proj", "gate_up_proj")


def _start(ranks: Ranks, folder: str, leaves: tuple[str, ...]) -> Engine:
    ports = ranks.share(lambda: json.dumps(free_port()).encode())
    spec = EngineSpec(
        location=folder,
        revision=None,
        hf_config=AutoConfig.from_pretrained(folder),
        dtype=torch.float32,
        device=torch.device("cpu"),
        max_prompt_length=100,
        max_completion_length=28,
        rows=4,
        lora_rank=RANK,
        lora_modules=leaves,
        team=Team(rank=ranks.rank, size=ranks.size, port=json.loads(ports[0])),
    )
    config = VLLMGeneratorConfig(tensor_parallel=ranks.size, kv_cache_bytes=2**24)
    return start_engine(config, spec, say=lambda _: None)
