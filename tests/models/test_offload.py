"""Offloaded layer inputs: bitwise the gradients of plain checkpointing, and host memory reused.

The same code runs on the CPU, where streams do nothing, and on CUDA (marked gpu), where they do.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_policies import make_policy, three_groups
from tiny_models import make_batch, random_ids, tiny_model
from torch import Tensor

from rlkit.models.config import Checkpointing
from rlkit.models.offload import HostStack, Offload
from rlkit.policy.policy import Policy
from rlkit.types import FullKL, KLDirection, OutputSpec, RolloutBatch

DEVICES = [
    pytest.param(torch.device("cpu"), id="cpu"),
    pytest.param(torch.device("cuda", 0), id="cuda", marks=pytest.mark.gpu),
]
NUM_LAYERS = 5
SPEC = OutputSpec(values=True, full_kl=FullKL(KLDirection.reverse))


def policies(device: torch.device) -> tuple[Policy, Policy]:
    """One model, checkpointed on the device and offloaded."""
    plain = make_policy(tiny_model("llama", num_hidden_layers=NUM_LAYERS))
    torch.nn.Module.to(plain.model, device)
    assert plain.critic is not None

    def moved(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.detach().to(device).requires_grad_() for k, v in leaves.items()}

    plain = replace(
        plain,
        head=plain.head._replace(weight=plain.head.weight.to(device)),
        adapter=moved(plain.adapter),
        critic=moved(plain.critic),
        gradient_checkpointing=Checkpointing.on,
    )
    offload = Offload(device, min_bytes=0)
    choice = Checkpointing.offload
    return plain, replace(plain, gradient_checkpointing=choice, offload=offload)


def loss(policy: Policy, batch: RolloutBatch) -> Tensor:
    out = policy.forward(batch, adapter=policy.adapter, temperature=1.0, spec=SPEC)
    assert out.values is not None and out.full_kl is not None
    return (out.logps * 0.3).sum() + out.values.square().sum() + out.full_kl.sum()


def gradients(policy: Policy, batches: list[RolloutBatch]) -> list[Tensor]:
    """Accumulated over `batches`, one micro-batch after the other."""
    leaves = list(policy.named_parameters().values())
    for leaf in leaves:
        leaf.grad = None
    for batch in batches:
        torch.autograd.backward(loss(policy, batch))
    return [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]


def micro_batches(device: torch.device) -> list[RolloutBatch]:
    """Two of different sizes, the larger one last: buffers of one do not fit the other."""
    small = make_batch([random_ids(4, seed=1)], [random_ids(3, seed=2)])
    return [small.to(device), three_groups().to(device)]


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_bitwise_those_of_checkpointing(device: torch.device) -> None:
    plain, offloading = policies(device)
    batches = micro_batches(device)
    truth = gradients(plain, batches)
    assert len(truth) == len(plain.named_parameters()) and all(x.any() for x in truth)
    for _ in range(3):
        actual = gradients(offloading, batches)
        assert all(torch.equal(a, b) for a, b in zip(actual, truth, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_all_inputs_but_the_last_wait_on_the_host_and_leave_it(device: torch.device) -> None:
    _, offloading = policies(device)
    assert offloading.offload is not None
    host = offloading.offload.host
    (_, batch) = micro_batches(device)
    total = loss(offloading, batch)
    # A policy's and a critic's graph, one after the other; the newest input of all stays.
    assert host.num_live == 2 * NUM_LAYERS - 1
    torch.autograd.backward(total)
    del total
    assert host.num_live == 0
    size = host.num_bytes
    gradients(offloading, [batch] * 3)
    assert (host.num_bytes, host.num_live) == (size, 0)


@pytest.mark.parametrize("device", DEVICES)
def test_an_error_in_the_middle_leaves_nothing_behind(device: torch.device) -> None:
    plain, offloading = policies(device)
    assert offloading.offload is not None
    batches = micro_batches(device)
    truth = gradients(plain, batches)
    layer = offloading.model.get_submodule("model.layers.3")
    for when in ("forward", "backward"):
        if when == "forward":
            handle = layer.register_forward_pre_hook(_fail)
        else:
            leaf = next(v for k, v in plain.adapter.items() if "layers.2" in k)
            handle = leaf.register_hook(_fail)  # type: ignore[no-untyped-call]
        with pytest.raises(RuntimeError, match="on purpose"):
            gradients(offloading, batches)
        handle.remove()
        actual = gradients(offloading, batches)
        assert all(torch.equal(a, b) for a, b in zip(actual, truth, strict=True))
        # torch itself holds a graph that failed in its backward pass until the next one.
        gc.collect()
        assert offloading.offload.host.num_live == 0


def _fail(*_: object) -> None:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("device", DEVICES)
def test_scoring_without_gradients_copies_nothing(device: torch.device) -> None:
    plain, offloading = policies(device)
    batch = micro_batches(device)[1]
    with torch.no_grad():
        logps = [
            p.forward(batch, adapter=p.adapter, temperature=1.0).logps for p in (plain, offloading)
        ]
    assert torch.equal(*logps)
    assert offloading.offload is not None and offloading.offload.host.num_bytes == 0


@pytest.mark.parametrize("device", DEVICES)
def test_what_was_kept_can_be_asked_for_in_any_order_and_twice(device: torch.device) -> None:
    offload = Offload(device, min_bytes=0)
    values = [torch.full((2, 3), float(i), device=device) for i in range(4)]
    kept = [offload.keep(value.clone()) for value in values]
    assert offload.host.num_live == 3
    for i in (2, 0, 3, 1, 1, 0, 2, 3):
        assert torch.equal(offload.fetch(kept[i]), values[i])
    del kept[0]
    assert offload.host.num_live == 2
    assert torch.equal(offload.fetch(kept[0]), values[1])  # whose predecessor has gone
    kept.clear()
    assert offload.host.num_live == 0


def test_small_tensors_stay() -> None:
    offload = Offload(torch.device("cpu"), min_bytes=1000)
    small = torch.ones(249)
    kept = [offload.keep(small), offload.keep(small)]
    assert offload.host.num_live == 0
    assert all(offload.fetch(one).data_ptr() == small.data_ptr() for one in kept)


@given(st.lists(st.integers(1, 2**22), min_size=1, max_size=30))
def test_host_buffers_never_overlap_and_are_taken_again(sizes: list[int]) -> None:
    host = HostStack(pinned=False)
    for _ in range(2):
        buffers = [host.take(size) for size in sizes]
        spans = sorted((b.data_ptr(), b.data_ptr() + b.numel()) for b in buffers)
        assert [b.numel() for b in buffers] == sizes
        assert all(b.data_ptr() % 64 == 0 for b in buffers)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        total = host.num_bytes
        last = [host.release() for _ in sizes]
        assert last == [False] * (len(sizes) - 1) + [True]
    assert host.num_bytes == total


def test_an_eighth_of_the_page_locked_memory_is_lost_at_most() -> None:
    host = HostStack(pinned=False)
    size = 1025 * 2048 * 2  # the input of a layer: 1025 tokens in 16 bits
    taken = [host.take(size) for _ in range(64)]
    assert host.num_bytes <= 8 / 7 * (len(taken) + 8) * size
