"""Backward passes on the caller's thread, and updates that leave no tensor to the collector."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from tiny_models import make_batch, random_ids, tiny_model
from torch import Tensor

from rlkit.algorithms import CorrectionConfig, KLConfig, Objective, RatioConfig, build
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.models.config import Checkpointing, LoRAConfig, ModelConfig
from rlkit.models.load import BaseModel
from rlkit.policy.policy import new_policy
from rlkit.runtime.garbage import garbage_waits
from rlkit.training.backward import backward
from rlkit.training.optim import OptimConfig
from rlkit.training.score import score
from rlkit.training.update import UpdateSettings, accumulate
from rlkit.types import Setting

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    ],
)


class _Remembers(torch.autograd.Function):
    threads: ClassVar[list[int]] = []

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 3.0 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        _Remembers.threads.append(threading.get_ident())
        return 3.0 * grads[0]


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_gradients_are_computed_on_the_callers_thread(device: str) -> None:
    _Remembers.threads.clear()
    leaf = torch.ones(2, device=device, requires_grad=True)
    out: Tensor = _Remembers.apply(leaf)  # type: ignore[no-untyped-call]
    backward(out.square().sum())
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [18.0, 18.0]  # d (3 x)^2 / dx at 1
    assert _Remembers.threads == [threading.get_ident()]


def test_the_collector_comes_back_as_it_was() -> None:
    assert gc.isenabled()
    with garbage_waits():
        assert not gc.isenabled()
        with garbage_waits():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), garbage_waits():
        raise KeyError
    assert gc.isenabled()


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    with garbage_waits():
        yield


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("mode", [Checkpointing.off, Checkpointing.on])
def test_no_cycle_keeps_a_tensor_of_an_update(mode: Checkpointing) -> None:
    """What an update allocates is gone when it returns, without the collector."""
    model = tiny_model("qwen2")
    base = BaseModel(
        model=model,
        tokenizer=None,  # type: ignore[arg-type]
        location="",
        dtype=torch.float64,
        stop_ids=frozenset(),
        gradient_checkpointing=mode,
        notes=(),
    )
    policy = new_policy(base, ModelConfig(lora=LoRAConfig(rank=4)), seed=0)
    prompts = [random_ids(5, seed=i // 2) for i in range(4)]
    batch = make_batch(prompts, [random_ids(3 + i, seed=9 + i) for i in range(4)])
    objective = Objective(
        GRPOConfig(group_size=2), KLConfig(beta=0.1), RatioConfig(), CorrectionConfig()
    )
    setting = Setting(group_size=2, max_completion_length=8, updates_per_batch=1)
    algorithm = build(objective, setting)
    settings = UpdateSettings(
        optim=OptimConfig(), total_updates=1, temperature=1.0, tokens_per_microbatch=12
    )

    def update() -> int:
        scored = algorithm.prepare(score(policy, batch, algorithm, settings))
        accumulate(policy, scored, algorithm, settings)
        del scored
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    first = update()
    assert [update() for _ in range(3)] == [first] * 3
