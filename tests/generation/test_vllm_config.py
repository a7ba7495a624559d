"""Options and sizes of the vLLM generators: pure functions, no vLLM, no model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rlkit.config import did_you_mean
from rlkit.generation import SamplingOptions, VLLMGeneratorConfig, VLLMServerConfig
from rlkit.generation.vllm.config import (
    Quantization,
    VLLMSamplingOptions,
    Weights,
    is_installed,
    slot_rank,
)
from rlkit.generation.vllm.memory import (
    GIB,
    NF4_BYTES,
    OVERHEAD_BYTES,
    Budget,
    CacheShape,
    Demand,
    bytes_for,
    cache_shape,
    plan,
    weight_bytes,
)
from rlkit.generation.vllm.sampling_options import further_options, sampling_fields

needs_vllm = pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")
# Qwen2.5-1.5B: 28 layers x 2 heads x 128 x (keys and values) x 2 bytes.
QWEN = CacheShape(num_layers=28, num_kv_heads=2, head_dim=128, bytes_per_value=2)


@needs_vllm
def test_fields_are_those_of_the_installed_vllm() -> None:
    from vllm import SamplingParams

    assert sampling_fields() <= set(SamplingParams.__struct_fields__)
    assert {"min_p", "repetition_penalty", "bad_words", "logit_bias"} <= sampling_fields()


@needs_vllm
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("repetition_penality", r"did you mean repetition_penalty\?"),
        ("zzz", r"extra\.zzz is not a field of vLLM's SamplingParams \(allowed_token_ids, "),
        ("seed", "must not hold seed, which rlkit sets itself"),
        ("temperature", r"must not hold temperature.*\(generator.sampling.temperature\)"),
    ],
)
def test_unknown_and_owned_sampling_fields_are_refused(key: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VLLMSamplingOptions(extra={key: 1})


@needs_vllm
def test_the_way_to_a_further_field_is_named() -> None:
    names = ("top_k", "top_p", "min_p", *further_options(VLLMSamplingOptions))
    known = [f"generator.sampling.{name}" for name in names]
    hint = did_you_mean("generator.sampling.repetition_penalty", known)
    assert hint == " (did you mean generator.sampling.extra.repetition_penalty?)"
    # The options that every engine has; what they share with the key is their path alone.
    known = known[:3]
    assert further_options(SamplingOptions) == []
    hint = did_you_mean("generator.sampling.repetition_penalty", known)
    assert hint == " (generator.sampling has min_p, top_k, top_p)"


def test_4_bit_rollouts_have_weights_of_their_own() -> None:
    for weights in (Weights.auto, Weights.separate, Weights.sleep):
        VLLMGeneratorConfig(quantization=Quantization.nf4, weights=weights)
    with pytest.raises(
        ValueError, match=r"generator\.weights must be .*quantization=nf4, got shared"
    ):
        VLLMGeneratorConfig(quantization=Quantization.nf4, weights=Weights.shared)


def test_base_rules_of_sampling_hold_too() -> None:
    with pytest.raises(ValueError, match=r"generator.sampling.top_p must be in \(0, 1\]"):
        VLLMSamplingOptions(top_p=1.5)


@pytest.mark.parametrize(
    "key", ["kv_cache_bytes", "max_num_seqs", "max_num_batched_tokens", "block_size"]
)
def test_sizes_must_not_be_negative(key: str) -> None:
    options: dict[str, Any] = {key: -1}
    with pytest.raises(ValueError, match=f"generator.{key} must be >= 0, got -1"):
        VLLMGeneratorConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "generator.url must start with http"),
        ({"timeout_s": 0.0}, "generator.timeout_s must be > 0"),
        ({"connections": 0}, "generator.connections must be >= 1"),
    ],
)
def test_server_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VLLMServerConfig(**options)


@pytest.mark.parametrize(("rank", "slot"), [(1, 1), (2, 8), (16, 16), (17, 32), (512, 512)])
def test_slots_hold_the_rank(rank: int, slot: int) -> None:
    assert slot_rank(rank) == slot


def test_a_rank_beyond_the_largest_slot_says_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"model.lora.rank must be <= 512 .*generator=hf.*got 513"):
        slot_rank(513)


def test_weight_bytes_are_those_of_the_model_but_for_norms_and_biases() -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 501,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    for model in (
        LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False)),
        Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=True)),
    ):
        exact = sum(p.numel() for p in model.parameters() if p.ndim == 2) * 4
        assert weight_bytes(model.config, bytes_per_parameter=4) == exact
        layers = sum(p.numel() for n, p in model.named_parameters() if "_proj" in n and p.ndim == 2)
        in_nf4 = weight_bytes(model.config, bytes_per_parameter=4, bytes_in_layers=NF4_BYTES)
        # 4 bits a weight, 8 bits a block of 64, 32 bits for 256 of those.
        assert in_nf4 == pytest.approx(exact - (4 - 0.5 - 1 / 64 - 4 / 64 / 256) * layers, rel=1e-3)


def test_a_token_of_qwen_1_5b_takes_28_672_bytes() -> None:
    config = Qwen2Config(
        num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, hidden_size=1536
    )
    assert cache_shape(config, bytes_per_value=torch.bfloat16.itemsize) == QWEN
    assert QWEN.bytes_per_token == 28_672
    # 2 completions of 33 tokens: 3 blocks of 16 each, and two to spare.
    demand = Demand(rows=2, tokens_per_row=33, block_size=16)
    assert bytes_for(2, demand, QWEN) == 8 * 16 * 28_672


def _plan(**changes: Any) -> Budget:
    options = {
        "kv_cache_bytes": 0,
        "max_num_seqs": 0,
        "most_seqs": 256,
        "free_bytes": 80 * GIB,
        "reserved_bytes": 3 * GIB,
        "on_cpu": False,
    }
    demand = Demand(rows=64, tokens_per_row=640, block_size=16)
    return plan(demand, QWEN, **(options | changes))


def test_the_cache_is_what_a_step_needs_where_there_is_room() -> None:
    assert _plan() == Budget(kv_cache_bytes=(64 * 40 + 2) * 16 * 28_672, max_num_seqs=64)


def test_the_cache_is_half_of_what_is_left_where_there_is_less_room() -> None:
    free = 3 * GIB + OVERHEAD_BYTES + GIB
    assert _plan(free_bytes=free) == Budget(kv_cache_bytes=GIB // 2, max_num_seqs=64)


def test_options_are_taken_as_they_are() -> None:
    assert _plan(kv_cache_bytes=GIB, max_num_seqs=7) == Budget(GIB, 7)
    assert _plan(most_seqs=32).max_num_seqs == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"free_bytes": 3 * GIB},
            r"free memory for generator=vllm must be at least 0.02 GiB for one completion of 640 "
            r"tokens beside 3.00 GiB of weights and graphs .*generator=hf.*got 3.00 GiB",
        ),
        ({"kv_cache_bytes": 1000}, r"generator.kv_cache_bytes must be at least 0.02 GiB"),
        (
            {"kv_cache_bytes": 79 * GIB},
            r"must be at least 82.25 GiB .*generator.kv_cache_bytes makes it smaller\), "
            r"got 80.00 GiB",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        _plan(**changes)
    assert "\n" not in str(caught.value)
