"""The plan of a run that samples with vLLM in its own process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.memory_row import row_config
from rlkit.generation import VLLMGeneratorConfig
from rlkit.generation.demand import Sampler
from rlkit.generation.vllm.config import Compilation, Quantization
from rlkit.models.config import Checkpointing, QuantConfig, QuantKind, Switch
from rlkit.plan.choose import Plan, make_plan
from rlkit.plan.cost import step_seconds
from rlkit.plan.headline import ROWS
from rlkit.plan.of_config import request_of, with_plan
from rlkit.plan.parts import GB, GRAPH_BYTES, GRAPH_BYTES_PER_LAYER, Choice, parts_of
from rlkit.training.optim import OptimKind

SMALL, LARGE, _, LARGEST = ROWS


def part(plan: Plan, start: str) -> tuple[int, int]:
    (found,) = [p for p in plan.parts if p.name.startswith(start)]
    return found.sampling, found.training


def test_the_cache_is_for_sampling_alone_and_graphs_for_both() -> None:
    work = SMALL.work()
    plan = make_plan(work, SMALL.request(), budget=80 * GB)
    assert plan.choice.engine_tokens == 2048  # 8192 would be the whole step
    assert plan.choice.graphs
    # 8 completions of 64 blocks and two spare ones, 16 tokens of 28 layers x 2 x 2 x 128 x 2 bytes
    cache = (8 * 64 + 2) * 16 * 28 * 2 * 2 * 128 * 2
    assert part(plan, "keys and values") == (cache, 0)
    sampling, training = part(plan, "vLLM: CUDA graphs")
    # 1, 2, 4 and 8 rows, with and without the adapter.
    assert sampling == training == GRAPH_BYTES + 8 * 28 * GRAPH_BYTES_PER_LAYER
    sampling, training = part(plan, "vLLM: activations (2048 tokens)")
    # The weight of one layer in 16 bits, and at least inputs and outputs of the widest layer.
    assert sampling > 2 * 8960 * 1536 + 2 * 2048 * (1536 + 2 * 8960)
    assert training == 0


def test_more_memory_never_means_a_slower_step() -> None:
    work, request = LARGE.work(), LARGE.request()
    plans = [make_plan(work, request, budget=b * GB) for b in (80, 24, 16)]
    assert [p.choice.engine_tokens for p in plans] == [8192, 8192, 8192]
    assert [p.choice.at_once for p in plans] == [8, 4, 2]
    steps = {}
    for hundredths in range(240, 420, 4):
        try:
            plan = make_plan(SMALL.work(), SMALL.request(), budget=hundredths * GB // 100)
        except ValueError:
            continue
        steps[hundredths] = plan.choice
    wide = steps[max(steps)]
    assert (wide.engine_tokens, wide.graphs, wide.at_once) == (2048, True, 8)
    # Decoding without graphs takes eight times as long: four at once with them are faster.
    order = [(c.at_once, c.graphs) for c in steps.values()]
    assert order.index((8, False)) < order.index((4, True)) < order.index((8, True))
    seconds = [step_seconds(SMALL.work(), choice) for choice in steps.values()]
    assert seconds == sorted(seconds, reverse=True)


def test_what_the_user_asked_of_the_engine_stays() -> None:
    work = SMALL.work()
    request = replace(SMALL.request(), engine_tokens=512, graphs=Switch.off)
    plan = make_plan(work, request, budget=80 * GB)
    assert (plan.choice.engine_tokens, plan.choice.graphs) == (512, False)
    generator = VLLMGeneratorConfig(max_num_batched_tokens=300, compilation=Compilation.graphs)
    config = row_config(SMALL, Path("unused"), generator)
    asked = request_of(config, work)
    assert (asked.engine_tokens, asked.graphs) == (300, Switch.on)


@pytest.mark.parametrize(
    ("wanted", "graphs", "got"),
    [
        (Compilation.auto, True, Compilation.auto),
        (Compilation.auto, False, Compilation.eager),
        (Compilation.inductor, True, Compilation.inductor),
    ],
)
def test_the_engine_is_asked_for_what_was_planned(
    wanted: Compilation, graphs: bool, got: Compilation
) -> None:
    config = row_config(SMALL, Path("unused"), VLLMGeneratorConfig(compilation=wanted))
    plan = make_plan(SMALL.work(), SMALL.request(), budget=80 * GB)
    choice = plan.choice._replace(graphs=graphs, engine_tokens=1024, at_once=4)
    generator = with_plan(config, replace(plan, choice=choice, kv_cache_bytes=5)).generator
    assert isinstance(generator, VLLMGeneratorConfig)
    assert generator.compilation is got
    assert (generator.max_num_batched_tokens, generator.max_num_seqs) == (1024, 4)
    assert generator.kv_cache_bytes == 5


def test_4_bit_rollouts_under_a_16_bit_trainer_count_their_own_weights() -> None:
    work = replace(SMALL.work(Sampler.vllm_separate), quant=QuantConfig(), engine_in_nf4=True)
    assert work.engine_weight_bytes == SMALL.work().weight_bytes < work.weight_bytes / 2
    plan = make_plan(work, SMALL.request(), budget=80 * GB)
    assert part(plan, "vLLM: weights of its own") == (work.engine_weight_bytes,) * 2
    config = VLLMGeneratorConfig(quantization=Quantization.nf4)
    assert config.weights.value == "auto"


@pytest.mark.parametrize("gigabytes", [80, 24])
def test_8b_in_8_bits_is_planned(gigabytes: int) -> None:
    """One copy for engine and trainer: a byte a weight in layers, 4 bytes a row, 2 elsewhere."""
    quant = QuantConfig(kind=QuantKind.fp8)
    work = replace(LARGE.work(), quant=quant, max_prompt=128, max_completion=512)
    rows = 4096 + 2 * 1024 + 4096 + 2 * 14336 + 4096
    inputs = 4096 * (4096 + 2 * 1024 + 4096 + 2 * 14336) + 14336 * 4096
    elsewhere = 2 * (2 * 128256 * 4096 + 65 * 4096)
    assert work.weight_bytes == 32 * (inputs + 4 * rows) + elsewhere == 9_086_705_664
    plan = make_plan(work, LARGE.request(), budget=gigabytes * GB)
    assert part(plan, "base model")[0] == work.weight_bytes
    assert sum(p.sampling for p in plan.parts) <= gigabytes * GB
    assert sum(p.training for p in plan.parts) <= gigabytes * GB


@pytest.mark.parametrize(
    ("kind", "gigabytes", "tokens", "mode", "at_once", "peak"),
    [
        ("none", 80, 8448, "off", 64, 58.1),
        ("nf4", 80, 8448, "off", 64, 47.7),
        ("fp8", 80, 8448, "off", 64, 51.1),
        ("none", 24, 8448, "on", 32, 22.2),
        ("nf4", 24, 2560, "off", 64, 20.2),
        ("fp8", 24, 2560, "off", 64, 23.3),
    ],
)
def test_the_table_of_an_8b_in_the_docs(
    kind: str, gigabytes: int, tokens: int, mode: str, at_once: int, peak: float
) -> None:
    """The rows of docs/memory/plan.md: 64 completions of 128 + 512 tokens a step."""
    work = replace(
        LARGE.work(), quant=QuantConfig(kind=QuantKind(kind)), optim=OptimKind.adamw,
        max_prompt=128, max_completion=512, num_prompts=8, group_size=8, max_at_once=64,
    )  # fmt: skip
    request = replace(LARGE.request(), tokens_per_microbatch=None)
    plan = make_plan(work, request, budget=gigabytes * GB)
    choice = plan.choice
    assert (choice.tokens_per_microbatch, choice.checkpointing.value) == (tokens, mode)
    assert choice.at_once == at_once
    assert round(plan.peak / GB, 1) == peak
    table = (Path(__file__).parents[2] / "docs/memory/plan.md").read_text()
    assert f"{tokens:,} tokens, {at_once} at once, {peak} GB" in table


def test_the_self_test_of_a_large_adapter_is_counted() -> None:
    work = LARGEST.work()
    choice = Choice(1024, Checkpointing.offload, 2**26, 1, 1024, False)
    parts = parts_of(work, LARGEST.request(), choice)
    (steps,) = [p for p in parts if p.name.startswith("vLLM: activations")]
    # The factors in 16 bits, and a forward pass that dequantises the largest layer.
    largest = 2 * 8192 * 28672
    assert steps.sampling >= 2 * work.num_trained + largest == 883_949_568
    assert work.dtype is torch.bfloat16
