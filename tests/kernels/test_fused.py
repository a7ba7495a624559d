"""Models with fused kernels against themselves in float64, and against their own 16-bit code."""

from __future__ import annotations

import copy
import gc
import weakref
from contextlib import ExitStack
from functools import partial

import pytest
import torch
from tiny_models import random_ids, tiny_model
from torch import Tensor
from transformers import PreTrainedModel
from triton_places import INTERPRETED, on_triton_device

from rlkit.models import fused
from rlkit.models.attention import packed_attention
from rlkit.models.config import TuningKind
from rlkit.models.fused import fuse
from rlkit.models.layout import packing_of
from rlkit.models.packing import PackedRow, Segment, Span
from rlkit.models.recompute import recomputed
from rlkit.policy.full_weights import FullWeights
from rlkit.policy.lora import LoRAConfig, attach, init_adapter
from rlkit.policy.policy import Tuning


def states_and_gradients(
    model: PreTrainedModel,
    tuning: TuningKind,
    *,
    dtype: torch.dtype,
    device: str,
    fusing: bool,
    seed: int,
    recomputing: bool = False,
) -> list[Tensor]:
    """Last states of one packed row of two sequences, and gradients of what trains."""
    model = copy.deepcopy(model).to(device, dtype)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    trained: Tuning
    if tuning is TuningKind.full:
        trained = FullWeights(model, dtype=dtype, holds_reference=False)
        adapter = trained.masters
    else:
        trained = attach(model, LoRAConfig(rank=4), dtype=dtype)
        adapter = init_adapter(trained, seed=0, device=torch.device(device))
        with torch.no_grad():
            for key, tensor in adapter.items():
                if ".lora_B." in key:
                    tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    if fusing:
        fuse(model, join=trained.join)
    ids = torch.tensor([*random_ids(9, seed=seed), *random_ids(6, seed=seed + 100)], device=device)
    row = PackedRow(
        ids=ids,
        positions=torch.tensor([*range(9), *range(6)], device=device),
        lengths=torch.tensor([9] * 9 + [6] * 6, device=device),
        segments=(Segment(Span(0, 9)), Segment(Span(9, 6))),
        predictors=torch.arange(15, device=device),
    )
    again = partial(packed_attention, model.config)
    with trained.active(adapter), again(), ExitStack() as stack:
        if recomputing:
            stack.enter_context(recomputed(model, trained, again=again))
        states = model.model(
            input_ids=ids[None],
            position_ids=row.positions[None],
            use_cache=False,
            packing=packing_of(row, model.config, dtype),
        ).last_hidden_state
    weights = torch.randn(states.shape, generator=generator).to(device, dtype)
    (states * weights).sum().backward()
    gradients = [tensor.grad for tensor in adapter.values()]
    return [x.double() for x in (states.detach(), *gradients) if x is not None]


@on_triton_device
@pytest.mark.parametrize(
    ("family", "tuning", "num_tensors"),
    [
        ("llama", TuningKind.lora, 2 * 7 * 2),
        ("mistral", TuningKind.lora, 2 * 7 * 2),
        ("qwen2", TuningKind.lora, 2 * 7 * 2),
        ("qwen3", TuningKind.lora, 2 * 7 * 2),
        ("qwen3", TuningKind.full, 2 * (7 + 4) + 2),  # with norms and embeddings
    ],
)
def test_fused_layers_are_as_exact_as_the_models_own(
    family: str,
    tuning: TuningKind,
    num_tensors: int,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: set[torch.dtype] = set()

    def takes(x: Tensor) -> bool:
        seen.add(x.dtype)
        return x.dtype.itemsize == 2

    monkeypatch.setattr(fused, "takes", takes)
    model = tiny_model(family, initializer_range=0.1)
    errors = {True: 0.0, False: 0.0}
    num_seeds = 2 if INTERPRETED else 4
    for seed in range(num_seeds):
        kinds = [(torch.float64, False), (torch.bfloat16, True), (torch.bfloat16, False)]
        exact, *others = (
            states_and_gradients(
                model, tuning, dtype=dtype, device=device, fusing=fusing, seed=seed
            )
            for dtype, fusing in kinds
        )
        for fusing, found in zip((True, False), others, strict=True):
            assert len(found) == len(exact) == 1 + num_tensors
            for a, b in zip(found, exact, strict=True):
                errors[fusing] += float((a - b).square().sum() / b.square().sum())
    assert torch.bfloat16 in seen
    # Two ways of rounding: neither may be clearly worse than the other.
    assert errors[True] <= 2.0 * errors[False]
    assert (errors[False] / (num_seeds * (1 + num_tensors))) ** 0.5 < 0.05


@on_triton_device
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_layers_that_run_twice_give_the_same_bits(
    family: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "takes", lambda x: x.dtype.itemsize == 2)
    model = tiny_model(family, initializer_range=0.1)
    once, twice = (
        states_and_gradients(
            model,
            TuningKind.lora,
            dtype=torch.bfloat16,
            device=device,
            fusing=True,
            seed=1,
            recomputing=recomputing,
        )
        for recomputing in (False, True)
    )
    assert len(once) == 1 + 2 * 7 * 2
    for a, b in zip(once, twice, strict=True):
        assert torch.equal(a, b)
        assert a.abs().sum() > 0


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "phi3", "cohere"])
def test_other_inputs_and_other_models_run_their_own_code(family: str) -> None:
    """float64 on a CPU: bitwise as without."""
    model = tiny_model(family)
    expected = model(input_ids=torch.tensor([random_ids(9, seed=1)])).logits
    names = list(model.state_dict())
    fuse(model)
    fuse(model)
    assert torch.equal(model(input_ids=torch.tensor([random_ids(9, seed=1)])).logits, expected)
    assert list(model.state_dict()) == names


def test_a_fused_model_with_an_adapter_is_freed_at_once() -> None:
    """Without the garbage collector: an engine may wait for the weights that a model holds."""
    model = tiny_model("qwen2")
    lora = attach(model, LoRAConfig(rank=4), dtype=torch.float64)
    fuse(model, join=lora.join)
    model(input_ids=torch.tensor([random_ids(9, seed=1)]))
    layer = weakref.ref(model.get_submodule("model.layers.0.mlp"))
    weight = weakref.ref(model.get_parameter("model.layers.1.mlp.up_proj.weight"))
    gc.disable()
    try:
        del model
        assert layer() is None
        assert weight() is None
    finally:
        gc.enable()
