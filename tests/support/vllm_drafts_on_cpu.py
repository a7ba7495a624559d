"""Bursts with guesses on a CPU: `python vllm_drafts_on_cpu.py FOLDER`, for test_vllm_drafts.py.

Triton's interpreter runs the kernels, and the model runs eagerly where CUDA would replay a graph;
see `vllm_v2_on_cpu`. Samples with vLLM's scheduler and with guesses, and writes both as JSON to the
last line of standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from triton import language as tl
from vllm_models import key, linear_layers, random_lora
from vllm_v2_on_cpu import EagerGraphs, accept_triton, schedule_ahead

from rlkit.generation import Progress, VLLMGeneratorConfig
from rlkit.generation.speculation import DraftSource, SpeculationKind, SpeculationOptions
from rlkit.generation.vllm.accel.draft_burst import DraftedDecoder
from rlkit.generation.vllm.accel.draft_graphs import DraftGraphs
from rlkit.generation.vllm.accel.find import find_decoder
from rlkit.generation.vllm.compat.check import look_up
from rlkit.generation.vllm.engine import start_engine
from rlkit.generation.vllm.generator import VLLMGenerator
from rlkit.generation.vllm.lora import LoRAInjector
from rlkit.generation.vllm.package import version
from rlkit.generation.vllm.spec import EngineSpec
from rlkit.types import Prompt, SamplingConfig

_RANK, _LEAVES, _TOKENS = 4, ("q_proj", "v_proj", "down_proj"), 3
_CASES = {
    "length": (SamplingConfig(max_completion_length=37, temperature=0.1), ()),
    "stops": (SamplingConfig(max_completion_length=37, temperature=0.8, min_p=0.02), (7, 60, 180)),
    "min_p": (SamplingConfig(max_completion_length=29, min_p=0.7), ()),
}
_PROMPTS = [
    Prompt(
        index=n,
        ids=tuple((7 * n + i) % 250 for i in range(20 + 5 * n)),
        text="",
        limit=(None, 17, 2)[n],
    )
    for n in range(3)
]


def main(folder: str) -> None:
    """Sample every case by the scheduler, and by guesses of each source, twice with history."""
    begun = time.monotonic()
    accept_triton()
    schedule_ahead()
    spec = EngineSpec(
        location=folder,
        revision=None,
        hf_config=AutoConfig.from_pretrained(folder),
        dtype=torch.float32,
        device=torch.device("cpu"),
        max_prompt_length=40,
        max_completion_length=40,
        rows=8,
        lora_rank=_RANK,
        lora_modules=_LEAVES,
        spare_tokens=_TOKENS,
    )
    config = VLLMGeneratorConfig(max_num_seqs=4)
    engine = start_engine(config, spec, say=print)
    from vllm.config import CUDAGraphMode
    from vllm.v1.worker.gpu.sample import gumbel

    # The interpreter has no log1p.
    vars(gumbel)["tldevice"] = SimpleNamespace(log1p=lambda x: tl.log(1.0 + x))
    core = engine.llm.llm_engine.engine_core.engine_core
    runner = core.model_executor.driver_worker.model_runner
    graph = SimpleNamespace(cg_mode=CUDAGraphMode.FULL)
    support = look_up(version())
    eager = EagerGraphs(runner)
    plain = find_decoder(engine.llm, support)
    assert not isinstance(plain, str) and support.line is not None, plain
    line = support.line
    model = AutoModelForCausalLM.from_pretrained(folder)
    layers = [n for n in linear_layers(model) if n.endswith(_LEAVES)]
    injector = LoRAInjector(engine.llm, layers, rank=_RANK, scale=0.5, key=key)
    injector.load(random_lora(model, layers, rank=_RANK, seed=0), 1)

    def drafting(source: DraftSource, rows: int = 4) -> DraftedDecoder:
        options = SpeculationOptions(
            kind=SpeculationKind.ngram, tokens=_TOKENS, shortest=1, source=source, rows=rows
        )
        graphs = DraftGraphs(runner, eager, _TOKENS + 1)
        vars(graphs)["find"] = lambda ids: graph
        decoder = DraftedDecoder(core, runner, line, options, graphs)
        vars(decoder)["_graph"] = lambda ids: graph
        return decoder

    def sample(case: str, decoder: Any, progress: Any = None) -> list[dict[str, Any]]:
        engine.decoder = decoder
        print(f"{time.monotonic() - begun:.0f} s: {case}", file=sys.stderr, flush=True)
        sampling, stops = _CASES[case]
        generator = VLLMGenerator(
            engine, injector, stop_token_ids=frozenset(stops), config=config, progress=progress
        )
        groups = generator.generate(
            _PROMPTS, num_samples=3, sampling=sampling, seeds=[[1, 2, 3], [4, 5, 6], [7, 8, 9]]
        )
        return [
            {
                **{"ids": r.completion_ids, "logps": r.sampling_logps, "reason": r.finish_reason},
                **{"drafted": r.drafted, "accepted": r.accepted},
            }
            for group in groups
            for r in group
        ]

    def interrupt(progress: Progress) -> None:
        if progress.tokens > 60:
            raise KeyboardInterrupt

    found: dict[str, Any] = {}
    for case in _CASES:
        found[f"{case} scheduler"] = sample(case, None)
        for source in (DraftSource.own, DraftSource.group):
            found[f"{case} {source}"] = sample(case, drafting(source))
        remembering = drafting(DraftSource.history)
        sample(case, remembering)
        before = eager.replays
        found[f"{case} history"] = sample(case, remembering)
        found[f"{case} replays"] = eager.replays - before
    found["length few"] = sample("length", drafting(DraftSource.own, rows=2))
    try:
        sample("length", drafting(DraftSource.own), interrupt)
    except KeyboardInterrupt:
        found["interrupted"] = len(core.scheduler.running)
    found["after"] = sample("length", drafting(DraftSource.own))
    assert engine.llm.reset_prefix_cache()
    pool = core.scheduler.kv_cache_manager.block_pool
    found["lost blocks"] = runner.kv_cache_config.num_blocks - 1 - pool.get_num_free_blocks()
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
