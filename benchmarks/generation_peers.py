"""The sides of `benchmarks.generation` that are others.

vllm    vLLM as it comes, without adapters, through `LLM.generate`
trl     TRL's colocated vLLM: the adapter merged into the trainer's weights and all of them pushed
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.generation_sides import (
    PROMPT_TOKENS,
    Work,
    distinct_bytes,
    gpu_memory,
    say,
    setting,
    timed,
    wait,
)
from benchmarks.random_model import LINEAR_LAYERS

_SHARE = 0.3
"""The share of the device's memory for vLLM."""
_TRL_SYNCS = 5  # each takes a second or so


def vllm_side(work: Work) -> dict[str, object]:
    """Every completion a request with a seed and the logps of its tokens, as a trainer needs it."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    _, device, dtype = setting(work)
    begin = time.perf_counter()
    say("starting vLLM, which compiles" if device.type == "cuda" else "starting vLLM")
    llm = LLM(
        str(work.folder),
        dtype="bfloat16" if dtype is torch.bfloat16 else "float32",
        max_model_len=PROMPT_TOKENS + work.new_tokens,
        max_num_seqs=work.num_prompts * work.num_samples,
        gpu_memory_utilization=_SHARE,
        enforce_eager=device.type == "cpu",
    )
    rows: list[Any] = [
        {"prompt_token_ids": list(p.ids)} for p in work.prompts for _ in range(work.num_samples)
    ]

    def generate(new_tokens: int) -> None:
        params = [
            SamplingParams(
                max_tokens=new_tokens,
                seed=number,
                logprobs=0,
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for number in range(len(rows))
        ]
        outputs = llm.generate(rows, params, use_tqdm=False)
        if {len(o.outputs[0].token_ids) for o in outputs} != {new_tokens}:
            raise RuntimeError(f"every completion must have {new_tokens} tokens")

    generate(1)
    first_token = time.perf_counter() - begin
    say(f"first token after {first_token:.1f} s")
    return {
        "generation_s": timed(lambda: generate(work.new_tokens), work),
        "first_token_s": first_token,
        "gpu_memory_bytes": gpu_memory(),
    }


def trl_side(work: Work) -> dict[str, object]:
    """TRL's own class, as its GRPO trainer uses it with a PEFT model in colocate mode."""
    begin = time.perf_counter()
    model, generation = _trl(work)
    generation.sync_weights()
    prompts = [list(p.ids) for p in work.prompts for _ in range(work.num_samples)]

    def generate(new_tokens: int) -> None:
        generation.max_completion_length = new_tokens
        generation.generate(prompts, None, work.num_samples)

    generate(1)
    first_token = time.perf_counter() - begin
    say(f"first token after {first_token:.1f} s")
    syncs = []
    for _ in range(_TRL_SYNCS):
        wait()
        start = time.perf_counter()
        generation.sync_weights()
        wait()
        syncs.append(1e3 * (time.perf_counter() - start))
    say(f"{len(syncs)} syncs, {statistics.median(syncs):.2f} ms each")
    engine_model = generation.llm.llm_engine.model_executor.driver_worker.model_runner.model
    trained = [p for n, p in model.named_parameters() if "lora_" not in n]
    return {
        "sync_ms": statistics.median(syncs),
        "sync_ms_all": syncs,
        "generation_s": timed(lambda: generate(work.new_tokens), work),
        "first_token_s": first_token,
        "base_weight_bytes": distinct_bytes([*trained, *engine_model.parameters()]),
        "gpu_memory_bytes": gpu_memory(),
    }


def _trl(work: Work) -> tuple[Any, Any]:
    """A PEFT model and TRL's `VLLMGeneration` for it."""
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer
    from trl.generation.vllm_generation import VLLMGeneration

    _, device, dtype = setting(work)
    base = AutoModelForCausalLM.from_pretrained(work.folder, dtype=dtype)
    torch.nn.Module.to(base, device)
    adapter = LoraConfig(r=work.rank, lora_alpha=2 * work.rank, target_modules=[*LINEAR_LAYERS])
    model = get_peft_model(base, adapter)
    say("starting vLLM, which compiles")
    generation = VLLMGeneration(
        model,
        Accelerator(),
        AutoTokenizer.from_pretrained(work.folder),
        gpu_memory_utilization=_SHARE,
        max_model_length=PROMPT_TOKENS + work.new_tokens,
        max_num_seqs=work.num_prompts * work.num_samples,
        max_completion_length=work.new_tokens,
        generation_kwargs={"ignore_eos": True},
    )
    return model, generation
