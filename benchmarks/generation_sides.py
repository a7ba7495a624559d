"""rlkit's sides of `benchmarks.generation`, and what all sides need.

rlkit       the engine of generator=vllm with shared weights, and the adapter edited in place
rlkit_base  the same engine without adapters: what LoRA costs
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from benchmarks.random_model import LINEAR_LAYERS
from rlkit.generation import VLLMGeneratorConfig, sample_seed
from rlkit.generation.vllm.config import Compilation, VLLMSamplingOptions, Weights
from rlkit.generation.vllm.engine import Engine, start_engine
from rlkit.generation.vllm.generator import VLLMGenerator
from rlkit.generation.vllm.lora import Injection
from rlkit.generation.vllm.spec import EngineSpec
from rlkit.models.config import LoRAConfig
from rlkit.policy.lora import LoRA, attach, init_adapter
from rlkit.types import Prompt, SamplingConfig

_BEGIN = time.perf_counter()
PROMPT_TOKENS = 128


class Work(NamedTuple):
    """The work of every side."""

    folder: Path
    num_prompts: int
    num_samples: int
    new_tokens: int
    rank: int
    repeats: int
    syncs: int
    compilation: Compilation = Compilation.auto
    """The option of rlkit's engine; the others leave it to vLLM, which is `inductor`."""

    @property
    def prompts(self) -> list[Prompt]:
        """Prompts that differ from the second token on."""
        return [
            Prompt(
                index=n,
                ids=(7, *((11 * n + 3 * i) % 250 for i in range(PROMPT_TOKENS - 1))),
                text="",
            )
            for n in range(self.num_prompts)
        ]


def rlkit_side(work: Work) -> dict[str, object]:
    """Start, injection, generation and the bytes of the base weights, as in a run of rlkit."""
    from rlkit.generation.vllm.lora import LoRAInjector
    from rlkit.generation.vllm.weights import weight_views
    from rlkit.models.views import model_on_views

    hf_config, device, dtype = setting(work)
    begin = time.perf_counter()
    say("starting vLLM")
    engine, config = _engine(work, hf_config, device, dtype, rank=work.rank)
    views = weight_views(engine.llm)
    model = model_on_views(
        hf_config, views, str(work.folder), dtype=dtype, device=device, attention="sdpa"
    )
    lora = attach(model, LoRAConfig(rank=work.rank, alpha=2.0 * work.rank), dtype=dtype)
    injector = LoRAInjector(
        engine.llm, tuple(lora.shapes), rank=work.rank, scale=lora.config.scale, key=lora.key
    )
    adapter = random_adapter(lora, device)
    generator = VLLMGenerator(engine, injector, stop_token_ids=frozenset(), config=config)
    generator.load_adapter(adapter, 0)
    _generate(generator, work, new_tokens=1)
    first_token = time.perf_counter() - begin
    say(f"first token after {first_token:.1f} s")
    syncs = []
    for version in range(1, work.syncs + 1):
        for tensor in adapter.values():
            tensor.mul_(1.001)
        wait()
        start = time.perf_counter()
        generator.load_adapter(adapter, version)
        wait()
        syncs.append(1e3 * (time.perf_counter() - start))
    say(f"{work.syncs} syncs, {statistics.median(syncs):.2f} ms each")
    seconds = timed(lambda: _generate(generator, work, new_tokens=work.new_tokens), work)
    result: dict[str, object] = {
        "sync_ms": statistics.median(syncs),
        "sync_ms_all": syncs,
        "sync_bytes": sum(t.numel() for t in adapter.values()) * dtype.itemsize,
        "generation_s": seconds,
        "first_token_s": first_token,
        "base_weight_bytes": distinct_bytes([*views.values(), *model.parameters()]),
        "one_copy_bytes": distinct_bytes([*views.values()]),
        "runner": _runner(engine),
        "gpu_memory_bytes": gpu_memory(),
    }
    generator.close()
    return result


def rlkit_base_side(work: Work) -> dict[str, object]:
    """The same engine and requests without LoRA."""
    hf_config, device, dtype = setting(work)
    say("starting vLLM")
    engine, config = _engine(work, hf_config, device, dtype, rank=0)
    generator = VLLMGenerator(engine, NoAdapter(), stop_token_ids=frozenset(), config=config)
    _generate(generator, work, new_tokens=1)
    seconds = timed(lambda: _generate(generator, work, new_tokens=work.new_tokens), work)
    memory = gpu_memory()
    generator.close()
    return {"generation_s": seconds, "gpu_memory_bytes": memory}


class NoAdapter:
    """Stands where an injector does in an engine without adapters."""

    request = None

    def load(self, tensors: Mapping[str, Tensor], version: int) -> Injection:
        """There is no slot to load into."""
        raise RuntimeError("this engine has no adapters")


def setting(work: Work) -> tuple[PreTrainedConfig, torch.device, torch.dtype]:
    """Configuration of the model, and where and in what it computes."""
    hf_config: PreTrainedConfig = AutoConfig.from_pretrained(work.folder)
    if torch.cuda.is_available():
        return hf_config, torch.device("cuda", torch.cuda.current_device()), torch.bfloat16
    return hf_config, torch.device("cpu"), torch.float32


def _engine(
    work: Work,
    hf_config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    rank: int,
) -> tuple[Engine, VLLMGeneratorConfig]:
    rows = work.num_prompts * work.num_samples
    config = VLLMGeneratorConfig(
        weights=Weights.shared,
        compilation=work.compilation,
        max_num_seqs=rows,
        sampling=VLLMSamplingOptions(extra={"ignore_eos": True}),
    )
    spec = EngineSpec(
        location=str(work.folder),
        revision=None,
        hf_config=hf_config,
        dtype=dtype,
        device=device,
        max_prompt_length=PROMPT_TOKENS,
        max_completion_length=work.new_tokens,
        rows=rows,
        lora_rank=rank,
        lora_modules=LINEAR_LAYERS,
    )
    return start_engine(config, spec, say=print), config


def _generate(generator: VLLMGenerator, work: Work, *, new_tokens: int) -> None:
    seeds = [
        [sample_seed(0, 0, n, i) for i in range(work.num_samples)] for n in range(work.num_prompts)
    ]
    groups = generator.generate(
        work.prompts,
        num_samples=work.num_samples,
        sampling=SamplingConfig(max_completion_length=new_tokens),
        seeds=seeds,
    )
    tokens = {len(rollout.completion_ids) for group in groups for rollout in group}
    assert tokens == {new_tokens}, "every side must sample the same number of tokens"


def random_adapter(lora: LoRA, device: torch.device) -> dict[str, Tensor]:
    """An adapter whose update is small, not zero."""
    adapter = {k: t.detach() for k, t in init_adapter(lora, seed=0, device=device).items()}
    for key, tensor in adapter.items():
        if ".lora_B." in key:
            tensor.normal_(0.0, 1e-3)
    return adapter


def timed(generate: Callable[[], None], work: Work) -> list[float]:
    """Seconds of each repetition, after one to warm up."""
    generate()
    seconds = []
    for _ in range(work.repeats):
        wait()
        start = time.perf_counter()
        generate()
        wait()
        seconds.append(time.perf_counter() - start)
        say(f"generation {len(seconds)} of {work.repeats}: {seconds[-1]:.3f} s")
    return seconds


def say(text: str) -> None:
    """Print with the seconds since the process began."""
    print(f"{time.perf_counter() - _BEGIN:5.0f} s: {text}", flush=True)


def gpu_memory() -> int | None:
    """Bytes of the device in use, CUDA's own included; the bench is alone on it."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return total - free


def distinct_bytes(tensors: list[Tensor]) -> int:
    """Bytes of the storages behind `tensors`, each counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _runner(engine: Engine) -> str:
    config: Any = engine.llm.llm_engine.vllm_config
    return "V2" if getattr(config, "use_v2_model_runner", False) else "V1"


def wait() -> None:
    """Until the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
