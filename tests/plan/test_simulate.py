"""Planned bytes against the bytes of real tensors: the model's, the adapter's, autograd's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from plan_works import step_work
from tiny_models import make_batch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from rlkit.models.config import (
    Checkpointing,
    ModelConfig,
    QuantConfig,
    QuantKind,
    Switch,
    TuningKind,
)
from rlkit.models.load import BaseModel
from rlkit.models.quantize import meta_model, tensors_of
from rlkit.plan import sizes
from rlkit.plan.headline import ROWS
from rlkit.plan.live import LiveBytes
from rlkit.plan.simulate import TrainingWork, peaks
from rlkit.policy.lora import LoRAConfig, attach, init_adapter
from rlkit.policy.policy import new_policy
from rlkit.training.optim import OptimConfig, OptimKind, build_optimizer, learning_rate

CPU = torch.device("cpu")
_AUTO: Any = AutoModelForCausalLM


def config_of(family: str, *, layers: int) -> PreTrainedConfig:
    made: Any = CONFIG_MAPPING[family]
    config: PreTrainedConfig = made(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=997,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return config


def base_of(config: PreTrainedConfig, dtype: torch.dtype, mode: Checkpointing) -> BaseModel:
    model = _AUTO.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.requires_grad_(False).train(False)
    return BaseModel(
        model=model,
        tokenizer=None,  # type: ignore[arg-type]
        location="",
        dtype=dtype,
        stop_ids=frozenset(),
        gradient_checkpointing=mode,
        notes=(),
    )


def test_live_bytes_count_storages_once_and_until_the_last_view_is_gone() -> None:
    before = torch.zeros(1000)
    with LiveBytes() as live:
        a = torch.zeros(1000)
        view = a.view(10, 100)
        old = before.view(10, 100)
        assert live.now == 4000
        del a
        assert live.now == 4000
        product = view + old
        assert live.now == 8000
        del view
        assert (live.now, live.peak) == (4000, 8000)
        del product
        assert live.now == 0


@pytest.mark.parametrize(
    ("family", "mode", "dtype", "tuning"),
    [
        ("llama", Checkpointing.off, torch.float32, TuningKind.lora),
        ("llama", Checkpointing.on, torch.float32, TuningKind.lora),
        ("qwen2", Checkpointing.on, torch.bfloat16, TuningKind.lora),
        ("qwen3", Checkpointing.off, torch.bfloat16, TuningKind.lora),
        ("gemma", Checkpointing.on, torch.float32, TuningKind.lora),
        ("phi3", Checkpointing.on, torch.float32, TuningKind.lora),
        ("qwen2", Checkpointing.on, torch.bfloat16, TuningKind.full),
        ("llama", Checkpointing.off, torch.float32, TuningKind.full),
        ("gemma", Checkpointing.on, torch.float32, TuningKind.full),
    ],
)
def test_planned_activations_are_those_of_the_policy(
    family: str, mode: Checkpointing, dtype: torch.dtype, tuning: TuningKind
) -> None:
    # Enough tokens for them to outweigh what does not grow with them, the weights' gradients.
    rows, prompt, completion = (2, 60, 240) if tuning is TuningKind.lora else (4, 100, 300)
    config = config_of(family, layers=6)
    options = ModelConfig(shared_prefix=Switch.off, tuning=tuning)
    policy = new_policy(base_of(config, dtype, mode), options, seed=0)
    for leaf in policy.adapter.values():
        leaf.grad = torch.zeros_like(leaf)
    batch = make_batch([[3 + i] * prompt for i in range(rows)], [[5] * completion] * rows)
    with LiveBytes() as live:
        output = policy.forward(batch, adapter=policy.adapter, temperature=1.0)
        output.logps.sum().backward()  # type: ignore[no-untyped-call]
    work = TrainingWork(
        num_tokens=rows * (prompt + completion - 1),
        num_scored=rows * completion,
        dtype=dtype,
        quant=QuantKind.none,
        lora_rank=16,
        lora_targets=(),
        checkpointing=mode,
        ragged=False,
        tuning=tuning,
    )
    planned = peaks(config, work).with_workspace(2**30)
    assert abs(planned / live.peak - 1) < 0.10


def test_joined_layers_of_8_bits_are_dequantised_as_a_whole() -> None:
    """A layer's q, k and v are one product: 4096 + 2 x 1024 rows where NF4 has 4096 at most.

    With this many tokens the peak is at that product.
    """
    config = ROWS[1].work().hf_config
    found = {}
    for quant in (QuantKind.nf4, QuantKind.fp8):
        work = TrainingWork(
            num_tokens=2048, num_scored=32, dtype=torch.bfloat16, quant=quant, lora_rank=16,
            lora_targets=(), checkpointing=Checkpointing.on, ragged=True,
        )  # fmt: skip
        found[quant] = peaks(config, work).layers
    more = found[QuantKind.fp8] - found[QuantKind.nf4]
    assert 2 * 4096 * 2 * 1024 < more < 2 * 4096 * (4096 + 2 * 1024) * 1.2


def test_layers_add_the_same_each_time() -> None:
    work = TrainingWork(
        num_tokens=300, num_scored=200, dtype=torch.bfloat16, quant=QuantKind.nf4, lora_rank=16,
        lora_targets=(),
        checkpointing=Checkpointing.on, ragged=True,
    )  # fmt: skip
    found = [peaks(config_of("llama", layers=n), work).layers for n in (4, 5, 9)]
    assert found[2] - found[1] == 4 * (found[1] - found[0])


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_factors_that_depend_on_the_length_take_the_same_memory(kind: str) -> None:
    """On meta, positions have no values that transformers could choose the factors by."""
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
        rope["original_max_position_embeddings"] = 64
    work = TrainingWork(
        num_tokens=300, num_scored=200, dtype=torch.bfloat16, quant=QuantKind.none, lora_rank=16,
        lora_targets=(),
        checkpointing=Checkpointing.off, ragged=False,
    )  # fmt: skip
    plain, changed = config_of("llama", layers=2), config_of("llama", layers=2)
    changed.rope_parameters = rope
    assert abs(peaks(changed, work).layers / peaks(plain, work).layers - 1) < 0.01


def test_weights_adapter_and_moments_are_counted_exactly() -> None:
    for family, tied in (("qwen2", True), ("llama", False)):
        config = config_of(family, layers=2)
        config.tie_word_embeddings = tied
        model = _AUTO.from_config(config, dtype=torch.bfloat16)
        held = sum(t.nbytes for t in tensors_of(model))
        shapes = meta_model(config)
        assert sizes.weight_bytes(shapes, config, torch.bfloat16, QuantConfig()) == held
        lora = attach(model, LoRAConfig(rank=4), dtype=torch.bfloat16)
        adapter = init_adapter(lora, seed=0, device=CPU)
        planned = sizes.num_adapter_parameters(shapes, LoRAConfig(rank=4))
        assert planned == sum(t.numel() for t in adapter.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [OptimKind.adamw, OptimKind.adamw8bit])
def test_moments(kind: OptimKind, dtype: torch.dtype) -> None:
    leaf = nn.Parameter(torch.ones(64, 4096, dtype=dtype))
    config = OptimConfig(kind=kind)
    optimizer = build_optimizer({"w": leaf}, config)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, update=0, total_updates=1)
    leaf.grad = torch.ones_like(leaf)
    optimizer.step()
    state = optimizer.state[leaf]
    held = sum(
        t.nbytes
        for name, t in state.items()
        if isinstance(t, torch.Tensor) and t.numel() > 256 and not name.startswith("qmap")
    )
    assert held == sizes.moment_bytes(leaf.numel(), kind, dtype=dtype)


def test_keys_and_values() -> None:
    made: Any = CONFIG_MAPPING["llama"]
    llama = made(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
    )
    assert sizes.kv_bytes_per_token(llama, bytes_per_value=2) == 131072  # 128 KiB, as published


def test_ranks_share_the_moments_of_all_weights_alone() -> None:
    work = replace(step_work("qwen2.5-1.5b", 8, 8, 512), tuning=TuningKind.full)
    two, eight = (replace(work, ranks=n).moment_bytes for n in (2, 8))
    # 1,543,714,304 parameters have 8 bytes each; the embedding of 151936 x 1536 stays whole.
    assert work.moment_bytes == 8 * 1_543_714_304
    assert two / work.moment_bytes == pytest.approx(0.5, abs=0.01)
    assert eight == 8 * 151936 * 1536
    adapter = step_work("qwen2.5-1.5b", 8, 8, 512)
    assert replace(adapter, ranks=2).moment_bytes == adapter.moment_bytes


def test_ranks_share_the_masters_of_a_16_bit_model() -> None:
    work = replace(step_work("qwen2.5-1.5b", 8, 8, 512), tuning=TuningKind.full)
    assert work.master_bytes == 4 * 1_543_714_304
    assert replace(work, ranks=8).master_bytes == 4 * 151936 * 1536
    # A float32 model is its own master.
    assert replace(work, dtype=torch.float32).master_bytes == 0
