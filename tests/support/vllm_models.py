"""Tiny engines of several families, random adapters, and logps by merged weights: the truth."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tiny_models import NO_SPECIAL_TOKENS, tiny_config
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

LEAVES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SCALE = 2.0
_SIZES: dict[str, Any] = {
    "vocab_size": 203,  # padded to 256 in vLLM
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 32,
    "initializer_range": 0.2,
    **NO_SPECIAL_TOKENS,
}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: tiny_config("llama", **_SIZES | {"tie_word_embeddings": False}),
    "qwen2_tied": lambda: tiny_config(
        "qwen2", **_SIZES | {"hidden_size": 128, "tie_word_embeddings": True}
    ),
    "qwen3": lambda: tiny_config("qwen3", **_SIZES | {"tie_word_embeddings": False}),
    "phi3_fused": lambda: tiny_config("phi3", **_SIZES | {"hidden_size": 128}),
}


def save_tiny(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> str:
    """A random model of `family` in Hugging Face format; biases and norms are random as well."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        CONFIGS[family](), dtype=dtype
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(folder)
    return str(folder)


@contextmanager
def tiny_llm(
    location: str,
    *,
    dtype: Any = "float32",
    max_loras: int = 1,
    quantization: Any = None,
    hf_overrides: Any = None,
    dense: bool = False,
) -> Iterator[Any]:
    """A bare `vllm.LLM` with rlkit's worker extension and LoRA slots of rank 16.

    `max_loras` 0: without slots. `dense`: with rlkit's worker, and without slots for the embedding
    and the head.
    """
    from rlkit.generation.vllm.compat.cpu import prepare_cpu
    from rlkit.generation.vllm.guard import configure_environment, process_state_kept

    configure_environment()
    options: dict[str, Any] = {} if hf_overrides is None else {"hf_overrides": hf_overrides}
    if max_loras:
        options |= {"enable_lora": True, "max_loras": max_loras, "max_lora_rank": 16}
    if dense:
        options["worker_cls"] = "rlkit.generation.vllm.accel.dense_worker.DenseWorker"
        options["lora_target_modules"] = [*LEAVES, "qkv_proj", "gate_up_proj"]
    with process_state_kept():
        import vllm

        prepare_cpu()
        llm = vllm.LLM(
            location,
            skip_tokenizer_init=True,
            dtype=dtype,
            quantization=quantization,
            load_format=quantization or "auto",
            enforce_eager=True,
            max_model_len=160,
            max_num_seqs=8,
            max_num_batched_tokens=512,
            kv_cache_memory_bytes=2**26,
            gpu_memory_utilization=0.3,
            block_size=32,
            worker_extension_cls="rlkit.generation.vllm.worker.WorkerExtension",
            disable_log_stats=True,
            **options,
        )
    yield llm
    # Not shut down, only let go of: a shutdown ends torch.distributed for the session's engine too.
    del llm
    gc.collect()


def key(layer: str, factor: str) -> str:
    """PEFT's name of A or B of a layer."""
    return f"base_model.model.{layer}.lora_{factor}.weight"


def linear_layers(model: PreTrainedModel, leaves: Sequence[str] = LEAVES) -> list[str]:
    """Names of the linear layers that end in `leaves`."""
    return [n for n, _ in model.named_modules() if n.rsplit(".", 1)[-1] in leaves]


def random_lora(
    model: PreTrainedModel, layers: Sequence[str], *, rank: int, seed: int, size: float = 0.05
) -> dict[str, Tensor]:
    """A random adapter whose update is `size * SCALE * sqrt(rank)` times its input."""
    generator = torch.Generator().manual_seed(seed)
    adapter = {}
    for layer in layers:
        out, into = model.get_submodule(layer).get_parameter("weight").shape
        adapter[key(layer, "A")] = torch.randn(rank, into, generator=generator) * into**-0.5
        adapter[key(layer, "B")] = torch.randn(out, rank, generator=generator) * size
    return adapter


@contextmanager
def merged(
    model: PreTrainedModel, adapter: Mapping[str, Tensor] | None, *, scale: float = SCALE
) -> Iterator[None]:
    """Inside, W + scale B A stands in for every adapted W."""
    weights: dict[str, Tensor] = {}
    for name in adapter or {}:
        if name.endswith(".lora_A.weight"):
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            weights[layer] = model.get_submodule(layer).get_parameter("weight")
    saved = {layer: weight.detach().clone() for layer, weight in weights.items()}
    with torch.no_grad():
        for layer, weight in weights.items():
            a, b = (adapter[key(layer, f)].to(weight.device) for f in "AB")  # type: ignore[index]
            weight.copy_(weight.float() + scale * b @ a)
    try:
        yield
    finally:
        with torch.no_grad():
            for layer, weight in weights.items():
                weight.copy_(saved[layer])


@torch.no_grad()
def logps_of(
    model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[list[float]]:
    """float32 logps of each row's completion given its prompt; all rows must be equally long."""
    ids = torch.tensor([[*prompt, *completion] for prompt, completion in rows])
    num_tokens = len(rows[0][1])
    logits = model(ids.to(model.device), logits_to_keep=num_tokens + 1).logits.float().cpu()
    chosen = logits[:, :-1].log_softmax(-1).gather(2, ids[:, -num_tokens:, None])
    return [[float(x) for x in row] for row in chosen[..., 0]]


def in_worker(llm: Any, function: Any) -> Any:
    """`function(worker)` inside vLLM."""
    return llm.collective_rpc(lambda wrapper: function(wrapper.worker))[0]
