"""LoRA against PEFT (logits and gradients in float64), its files in both directions, bad input."""

from __future__ import annotations

import copy
import json
import math
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import random_ids, tiny_model
from torch import Tensor, nn
from torch.nn import functional as F

from rlkit.models.config import AdapterDType
from rlkit.models.peft_config import CONFIG, TENSORS
from rlkit.policy.lora import LoRA, LoRAConfig, attach, init_adapter
from rlkit.policy.lora_files import load_adapter, read_adapter_config, save_adapter

CPU = torch.device("cpu")
IDS = torch.tensor([random_ids(9, seed=1), random_ids(9, seed=2)])
CONFIGS = [
    LoRAConfig(rank=4, alpha=6.0),
    LoRAConfig(rank=3, alpha=5.0, rslora=True, targets=["q_proj", "down_proj"]),
]


def random_adapter(lora: LoRA, *, seed: int = 0) -> dict[str, Tensor]:
    """Float32 values, so that files keep them, held in float64."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: (0.2 * torch.randn(shape, generator=generator)).double().requires_grad_()
        for key, shape in lora.expected_shapes().items()
    }


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_peft_computes_the_same_logits_and_gradients_from_our_files(
    family: str, config: LoRAConfig, tmp_path: Path
) -> None:
    model = tiny_model(family)
    twin = copy.deepcopy(model)
    lora = attach(model, config, dtype=torch.float64)
    adapter = random_adapter(lora)
    upstream = torch.randn(2, 9, 67, generator=torch.Generator().manual_seed(3)).double()
    with lora.active(adapter):
        logits = model(input_ids=IDS).logits
    (logits * upstream).sum().backward()

    save_adapter(tmp_path / "adapter", lora, adapter, base_model="tiny")
    theirs = peft.PeftModel.from_pretrained(twin, tmp_path / "adapter", is_trainable=True)
    # PEFT keeps adapters in float32 unless told otherwise; the values are exact in both.
    theirs.double()
    their_logits = theirs(input_ids=IDS).logits
    torch.testing.assert_close(logits, their_logits, rtol=1e-12, atol=1e-12)
    (their_logits * upstream).sum().backward()
    grads = {
        name.replace(".default", ""): parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    assert grads.keys() == adapter.keys()
    for key, tensor in adapter.items():
        torch.testing.assert_close(tensor.grad, grads[key], rtol=1e-9, atol=1e-11, msg=key)


@pytest.mark.parametrize("config", CONFIGS)
def test_we_compute_the_same_logits_from_their_files(config: LoRAConfig, tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    ours = copy.deepcopy(model)
    their_config = peft.LoraConfig(
        r=config.rank,
        lora_alpha=int(config.alpha),
        use_rslora=config.rslora,
        target_modules=config.targets or "all-linear",
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(model, their_config)
    theirs.save_pretrained(str(tmp_path))
    expected = theirs(input_ids=IDS).logits.detach()

    lora = attach(ours, read_adapter_config(tmp_path), dtype=torch.float32)
    with lora.active(load_adapter(tmp_path, lora, device=CPU)):
        actual = ours(input_ids=IDS).logits.detach()
    with lora.active(None):
        base = ours(input_ids=IDS).logits.detach()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert (base - expected).abs().max() > 0.1


def test_the_update_is_scaled_by_hand_computed_factors() -> None:
    model = nn.Sequential()
    model.add_module("proj", nn.Linear(2, 1, bias=False))
    nn.init.zeros_(model.get_submodule("proj").weight)  # type: ignore[arg-type]
    x = torch.tensor([[1.0, 2.0]])
    for rslora, scale in [(False, 3.0), (True, 6.0)]:
        lora = attach(model, LoRAConfig(rank=4, alpha=12.0, rslora=rslora), dtype=torch.float32)
        adapter = {
            lora.key("proj", "A"): torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [2.0, 0.0]]),
            lora.key("proj", "B"): torch.tensor([[1.0, 10.0, 100.0, 0.5]]),
        }
        with lora.active(adapter):
            # A x = (3, 2, 0, 2); B A x = 3 + 20 + 0 + 1 = 24.
            assert model(x).item() == 24.0 * scale


def test_inactive_is_bitwise_the_base_model_and_zero_b_as_well() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    expected = model(input_ids=IDS).logits
    lora = attach(model, LoRAConfig(), dtype=torch.bfloat16)
    assert torch.equal(model(input_ids=IDS).logits, expected)
    adapter = init_adapter(lora, seed=0, device=CPU)
    with lora.active(adapter):
        assert torch.equal(model(input_ids=IDS).logits, expected)
        with lora.active(None):
            assert torch.equal(model(input_ids=IDS).logits, expected)


def test_the_innermost_adapter_counts_and_the_outer_one_comes_back() -> None:
    model = tiny_model("llama")
    lora = attach(model, LoRAConfig(rank=2), dtype=torch.float64)
    first, second = random_adapter(lora, seed=1), random_adapter(lora, seed=2)
    with lora.active(first):
        before = model(input_ids=IDS).logits
        with lora.active(second):
            assert not torch.allclose(model(input_ids=IDS).logits, before)
        assert torch.equal(model(input_ids=IDS).logits, before)
        with pytest.raises(RuntimeError, match="inside"), lora.active(second):
            raise RuntimeError("inside")
        assert torch.equal(model(input_ids=IDS).logits, before)


def test_bfloat16_forward_gives_float32_gradients_close_to_float64() -> None:
    exact, rounded = tiny_model("llama"), tiny_model("llama", dtype=torch.bfloat16)
    grads = []
    for model in (exact, rounded):
        dtype = model.dtype
        lora = attach(model, LoRAConfig(rank=4, alpha=4.0), dtype=dtype)
        adapter = {k: v.detach().float().requires_grad_() for k, v in random_adapter(lora).items()}
        with lora.active(adapter):
            logps = model(input_ids=IDS).logits.float().log_softmax(-1)
        torch.autograd.backward(F.nll_loss(logps[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()))
        grads.append(torch.cat([v.grad.flatten() for v in adapter.values() if v.grad is not None]))
        assert all(v.grad is not None and v.grad.dtype == torch.float32 for v in adapter.values())
    assert F.cosine_similarity(grads[0], grads[1], dim=0) > 0.99


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_an_adapter_in_bfloat16_is_one_of_rounded_values(
    compute: torch.dtype, tmp_path: Path
) -> None:
    """Same logits as a float32 adapter of these values; its gradients, rounded."""
    model = tiny_model("llama", dtype=compute)
    config = LoRAConfig(rank=4, alpha=6.0, dtype=AdapterDType.bf16)
    lora = attach(model, config, dtype=compute)
    narrow = {
        key: value.detach().bfloat16().requires_grad_()
        for key, value in random_adapter(lora).items()
    }
    wide = {key: value.detach().float().requires_grad_() for key, value in narrow.items()}
    outputs = []
    for adapter in (narrow, wide):
        with lora.active(adapter):
            logits = model(input_ids=IDS).logits.float()
        torch.autograd.backward(logits.log_softmax(-1)[..., 3].sum())
        outputs.append(logits)
    assert torch.equal(*outputs)
    for key, tensor in narrow.items():
        gradient = wide[key].grad
        assert tensor.grad is not None and gradient is not None
        assert torch.equal(tensor.grad, gradient.bfloat16())
    save_adapter(tmp_path, lora, narrow, base_model="tiny")
    again = load_adapter(tmp_path, lora, device=CPU)
    assert all(torch.equal(again[key], tensor) for key, tensor in narrow.items())
    assert {tensor.dtype for tensor in again.values()} == {torch.bfloat16}
    first = init_adapter(lora, seed=1, device=CPU)
    plain = init_adapter(attach(tiny_model("llama"), CONFIGS[0], dtype=compute), seed=1, device=CPU)
    assert all(torch.equal(first[key], plain[key].bfloat16()) for key in plain)


def test_parameter_names_of_the_model_stay_as_they_are() -> None:
    model = tiny_model("llama")
    names = list(model.state_dict())
    attach(model, LoRAConfig(), dtype=torch.float64)
    assert list(model.state_dict()) == names
    assert not any(p.requires_grad for p in model.parameters())


def test_default_targets_are_all_linear_layers_but_the_head() -> None:
    lora = attach(tiny_model("phi3"), LoRAConfig(), dtype=torch.float64)
    leaves = {name.rsplit(".", 1)[-1] for name in lora.shapes}
    assert leaves == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    assert len(lora.shapes) == 8


def test_initial_values_depend_on_seed_and_key_alone() -> None:
    few = attach(tiny_model("llama"), LoRAConfig(rank=4, targets=["q_proj"]), dtype=torch.float64)
    many = attach(tiny_model("llama"), LoRAConfig(rank=4), dtype=torch.float64)
    torch.manual_seed(1)
    first = init_adapter(few, seed=5, device=CPU)
    torch.manual_seed(2)
    second = init_adapter(many, seed=5, device=CPU)
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key])
    other = init_adapter(few, seed=6, device=CPU)
    assert not torch.equal(other[next(iter(other))], first[next(iter(first))])


def test_initial_a_has_the_spread_of_pefts_and_b_is_zero() -> None:
    model = nn.Sequential()
    model.add_module("wide", nn.Linear(400, 30))
    lora = attach(model, LoRAConfig(rank=64), dtype=torch.float32)
    a, b = init_adapter(lora, seed=0, device=CPU).values()
    reference = torch.empty(64, 400)
    nn.init.kaiming_uniform_(reference, a=math.sqrt(5))
    assert a.abs().max() <= 1 / 20
    assert a.std().item() == pytest.approx(reference.std().item(), rel=0.02)
    assert not bool(b.any())
    assert a.is_leaf and a.requires_grad and a.dtype == torch.float32


def test_unknown_targets_are_named() -> None:
    with pytest.raises(ValueError, match=r"model.lora.targets must be .*q_proj.*, got wq"):
        attach(tiny_model("llama"), LoRAConfig(targets=["wq"]), dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "model.lora.rank must be >= 1, got 0"),
        ({"alpha": 0.0}, "model.lora.alpha must be > 0, got 0.0"),
        ({"alpha": float("nan")}, "model.lora.alpha must be > 0, got nan"),
        ({"targets": ["q", "q"]}, "model.lora.targets must not repeat"),
    ],
)
def test_ranges(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRAConfig(**options)  # type: ignore[arg-type]


class TestFiles:
    """A saved adapter, damaged in one way each."""

    @pytest.fixture
    def lora(self) -> LoRA:
        return attach(tiny_model("llama"), LoRAConfig(rank=4, alpha=6.0), dtype=torch.float64)

    @pytest.fixture
    def folder(self, lora: LoRA, tmp_path: Path) -> Path:
        save_adapter(tmp_path / "a", lora, random_adapter(lora), base_model="tiny")
        return tmp_path / "a"

    def test_round_trip_keeps_every_bit(self, lora: LoRA, folder: Path) -> None:
        loaded = load_adapter(folder, lora, device=CPU)
        for key, value in random_adapter(lora).items():
            assert torch.equal(loaded[key], value.float())
            assert loaded[key].is_leaf and loaded[key].requires_grad
        assert sorted(path.name for path in folder.iterdir()) == [CONFIG, TENSORS]

    def test_saving_again_replaces(self, lora: LoRA, folder: Path) -> None:
        newer = random_adapter(lora, seed=9)
        save_adapter(folder, lora, newer, base_model="tiny")
        key = next(iter(newer))
        assert torch.equal(load_adapter(folder, lora, device=CPU)[key], newer[key].float())

    def test_a_missing_tensor_is_named(self, lora: LoRA, folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        key = sorted(tensors)[5]
        del tensors[key]
        save_file(tensors, folder / TENSORS)
        with pytest.raises(ValueError, match=f"missing tensors: {key}"):
            load_adapter(folder, lora, device=CPU)

    def test_an_unexpected_tensor_is_named(self, lora: LoRA, folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        save_file({**tensors, "extra.lora_A.weight": torch.ones(1)}, folder / TENSORS)
        with pytest.raises(ValueError, match=r"unexpected tensors: extra\.lora_A"):
            load_adapter(folder, lora, device=CPU)

    def test_a_wrong_shape_is_named(self, lora: LoRA, folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        key = sorted(tensors)[0]
        save_file({**tensors, key: tensors[key].T.contiguous()}, folder / TENSORS)
        with pytest.raises(ValueError, match=f"{key} must have shape"):
            load_adapter(folder, lora, device=CPU)

    def test_a_value_that_is_not_finite_is_named(self, lora: LoRA, folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        key = sorted(tensors)[3]
        tensors[key][0, 0] = math.nan
        save_file(tensors, folder / TENSORS)
        with pytest.raises(ValueError, match=f"finite, got {key}"):
            load_adapter(folder, lora, device=CPU)

    def test_a_cut_off_file_is_named(self, lora: LoRA, folder: Path) -> None:
        data = (folder / TENSORS).read_bytes()
        (folder / TENSORS).write_bytes(data[:-100])
        with pytest.raises(ValueError, match=f"{TENSORS} must be a safetensors file"):
            load_adapter(folder, lora, device=CPU)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("lora_alpha", 8, "scale must be model.lora's 1.5, got 2.0"),
            ("peft_type", "IA3", "peft_type must be LORA, got IA3"),
            ("use_dora", True, "use_dora must be unset, got True"),
            ("rank_pattern", {"q_proj": 2}, "rank_pattern must be unset"),
            ("bias", "all", "bias must be none, got all"),
            ("target_modules", ".*proj", "target_modules must be a list"),
        ],
    )
    def test_a_config_that_computes_something_else_is_refused(
        self, key: str, value: object, message: str, lora: LoRA, folder: Path
    ) -> None:
        values = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**values, key: value}))
        with pytest.raises(ValueError, match=message):
            load_adapter(folder, lora, device=CPU)

    def test_no_folder(self, lora: LoRA, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"adapter_config.json must be a PEFT"):
            load_adapter(tmp_path / "nowhere", lora, device=CPU)

    def test_zero_b_is_reported(self, lora: LoRA, folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        key = sorted(k for k in tensors if k.endswith("lora_B.weight"))[2]
        save_file({**tensors, key: torch.zeros_like(tensors[key])}, folder / TENSORS)
        with pytest.warns(UserWarning, match="lora_B is zero in 1 of 14 layers"):
            load_adapter(folder, lora, device=CPU)

    def test_a_trained_adapter_warns_of_nothing(self, lora: LoRA, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_adapter(folder, lora, device=CPU)
