"""QLoRA on one copy: the trainer computes on vLLM's NF4 blocks and states (bitsandbytes)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from vllm_models import in_worker, logps_of, save_tiny, tiny_llm

from rlkit.generation.vllm.config import is_installed
from rlkit.generation.vllm.lora import LoRAInjector
from rlkit.generation.vllm.probe import mean_difference, random_factors, sample, self_test
from rlkit.generation.vllm.weights import weight_views
from rlkit.models.config import LoRAConfig
from rlkit.models.quantize import quantisable, settle, skip_modules, tensors_of
from rlkit.models.views import model_on_views, shared_bytes
from rlkit.policy.lora import LoRA, attach

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed(), reason="vLLM is not installed"),
]
CPU = torch.device("cpu")
KEPT = (
    "model.layers.0.self_attn.o_proj",
    "model.layers.1.mlp.gate_proj",
    "model.layers.1.mlp.up_proj",
)


class Case(NamedTuple):
    family: str
    dtype: torch.dtype
    double_quant: bool
    kept: tuple[str, ...]
    num_layers: int
    """4-bit ones."""
    tolerance: float
    """Of vLLM's logps: fused layers and another attention round otherwise."""


CASES = [
    Case("llama", torch.float32, True, KEPT, 11, 1e-4),
    Case("qwen2_tied", torch.bfloat16, True, (), 14, 0.1),
    Case("phi3_fused", torch.float32, False, (), 8, 1e-4),
]


def save_nf4(
    folder: Path, family: str, dtype: torch.dtype, *, double_quant: bool, skip: list[str]
) -> str:
    """A tiny model in NF4, as transformers alone quantises and saves it."""
    options = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip,
    )
    model = AutoModelForCausalLM.from_pretrained(
        save_tiny(folder / "plain", family, dtype),
        dtype=dtype,
        quantization_config=options,
        device_map={"": "cpu"},
    )
    model.save_pretrained(folder / "nf4")
    return str(folder / "nf4")


def nf4_llm(location: str, dtype: torch.dtype) -> Any:
    from rlkit.generation.vllm.guard import configure_environment

    configure_environment()
    from rlkit.generation.vllm import nf4

    name = str(dtype).removeprefix("torch.")
    return tiny_llm(location, dtype=name, quantization=nf4.NAME)


class Shared(NamedTuple):
    """An engine, the model on its weights, and one that transformers loaded from the files."""

    case: Case
    llm: Any
    hf: PreTrainedModel
    own: PreTrainedModel
    views: dict[str, Tensor]


@pytest.fixture(params=CASES, ids=[case.family for case in CASES])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shared]:
    case: Case = request.param
    location = save_nf4(
        tmp_path,
        case.family,
        case.dtype,
        double_quant=case.double_quant,
        skip=skip_modules(case.kept),
    )
    with nf4_llm(location, case.dtype) as llm:
        views = weight_views(llm)
        config = AutoConfig.from_pretrained(location)
        hf = model_on_views(config, views, location, dtype=case.dtype, device=CPU, attention="sdpa")
        own = AutoModelForCausalLM.from_pretrained(
            location, dtype=case.dtype, attn_implementation="sdpa"
        )
        hf.train(False)
        own.train(False).requires_grad_(False)
        assert settle(own, case.dtype) == settle(hf, case.dtype) == case.num_layers
        yield Shared(case, llm, hf, own, views)


def storages(model: Any) -> set[int]:
    """Of the parameters and of the quantisation states."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors_of(model)}


def engines_storages(worker: Any) -> set[int]:
    model = worker.model_runner.get_model()
    found = {p.untyped_storage().data_ptr() for p in model.parameters()}
    for module in model.modules():
        for state in getattr(module, "nf4_states", ()):
            nested = () if state.state2 is None else (state.state2.absmax, state.state2.code)
            tensors = (state.absmax, state.code, state.offset, *nested)
            found |= {t.untyped_storage().data_ptr() for t in tensors if t is not None}
    return found


def test_the_trainer_computes_on_vllms_blocks(shared: Shared) -> None:
    case, hf, own = shared.case, shared.hf, shared.own
    ids = torch.arange(60).view(2, 30) * 3
    with torch.no_grad():
        assert torch.equal(hf(ids).logits, own(ids).logits)
    # Not one byte of its own, and as many as transformers needs: the scales are as in the file.
    assert storages(hf) <= in_worker(shared.llm, engines_storages)
    assert shared_bytes(hf, shared.views) == sum(t.nbytes for t in tensors_of(own))
    for name in quantisable(own):
        state: Any = getattr(hf.get_submodule(name).weight, "quant_state", None)
        assert (state is None) == (name in case.kept), name
        if state is not None:
            assert state.nested == case.double_quant
            assert state.absmax.dtype is (torch.uint8 if case.double_quant else torch.float32)
    rows, logps = sample(shared.llm, None)
    assert mean_difference(logps, logps_of(own, rows)) < case.tolerance
    _adapters(shared)


def _adapters(shared: Shared) -> None:
    """QLoRA: the adapter in vLLM and in the trainer, and its gradient through the codes."""
    case = shared.case
    loras = [
        attach(model, LoRAConfig(rank=16, alpha=32.0), dtype=case.dtype)
        for model in (shared.hf, shared.own)
    ]
    lora = loras[0]
    injector = LoRAInjector(
        shared.llm, tuple(lora.shapes), rank=16, scale=lora.config.scale, key=lora.key
    )

    def score(adapter: Any, probes: Any) -> list[list[float]]:
        with loras[1].active(adapter):
            return logps_of(shared.own, probes)

    like = {name: torch.zeros(shape) for name, shape in lora.expected_shapes().items()}
    found = self_test(injector, score, tensors=like, tolerance=2 * case.tolerance)
    assert [verdict.problem for verdict in found.verdicts] == [""] * len(found.verdicts)
    assert found.effect > 4 * case.tolerance
    adapter = dict(random_factors(like, lora.config.scale, seed=3, strength=0.4))
    grads = [
        _grads(model, lora, adapter)
        for model, lora in zip((shared.hf, shared.own), loras, strict=True)
    ]
    # Not bitwise: a CPU's products round by where their operands happen to lie in memory.
    limit = 8 * torch.finfo(case.dtype).eps
    for name, grad in grads[0].items():
        other = grads[1][name]
        assert grad.norm() > 0 and (grad - other).norm() <= limit * other.norm(), name


def _grads(model: PreTrainedModel, lora: LoRA, adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    ids = torch.arange(60).view(2, 30) * 3
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in adapter.items()}
    with lora.active(leaves):
        model(ids, labels=ids).loss.backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("config", "layers that vLLM fuses must be quantised or kept together, got .*qkv_proj"),
        ("state", "the checkpoint must hold all of .*up_proj.weight, got only"),
        ("storage", "bnb_4bit_quant_storage must be uint8 for vLLM, got bfloat16"),
        ("norm", r"got none for \['model.norm.weight'\]"),
    ],
)
def test_what_vllm_cannot_hold_is_refused(tmp_path: Path, spoil: str, message: str) -> None:
    location = save_nf4(tmp_path, "llama", torch.float32, double_quant=True, skip=["lm_head"])
    file, config_file = Path(location, "model.safetensors"), Path(location, "config.json")
    config = json.loads(config_file.read_text())
    if spoil == "config":
        config["quantization_config"]["llm_int8_skip_modules"] = ["lm_head", "q_proj"]
    if spoil == "storage":
        config["quantization_config"]["bnb_4bit_quant_storage"] = "bfloat16"
    config_file.write_text(json.dumps(config))
    left_out = {
        "state": "model.layers.1.mlp.up_proj.weight.nested_absmax",
        "norm": "model.norm.weight",
    }
    tensors = load_file(file)
    if spoil in left_out:
        del tensors[left_out[spoil]]
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(Exception, match=message), nf4_llm(location, torch.float32):
        pass


def test_states_are_read_in_any_order_and_in_full_precision(tmp_path: Path) -> None:
    from rlkit.generation.vllm import nf4

    location = save_nf4(tmp_path, "llama", torch.float32, double_quant=True, skip=["lm_head"])
    tensors = load_file(Path(location, "model.safetensors"))
    own = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
    states: dict[str, Any] = {}
    torch.set_default_dtype(torch.bfloat16)  # as vLLM does while it loads
    try:
        got = dict(nf4._with_states(reversed(list(tensors.items())), states, CPU))
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(states) == 14
    for name, state in states.items():
        its: Any = own.get_parameter(name)
        assert got[name].shape == (its.quant_state.shape[0], its.quant_state.shape[1] // 2)
        assert torch.equal(got[name].flatten(), its.data.flatten())
        assert torch.equal(state.offset, its.quant_state.offset)
        assert torch.equal(state.absmax, its.quant_state.absmax)
    plain = {name: tensor for name, tensor in tensors.items() if ".weight." not in name}
    for name in plain.keys() - states.keys():
        assert got[name] is tensors[name]
