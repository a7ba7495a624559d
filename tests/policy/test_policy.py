"""The policy's logps, gradients and other outputs against transformers' own logits in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_policies import make_policy, three_groups
from tiny_models import grouped_batch, make_batch, oracle_logps, random_ids, tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlkit.models.attention import packed_attention
from rlkit.models.config import Checkpointing, Switch
from rlkit.models.families import FAMILIES, backbone_of, head_of
from rlkit.models.hidden import completion_states, prepare
from rlkit.policy.lora import LoRA, LoRAConfig, attach, init_adapter
from rlkit.policy.policy import VALUE_BIAS, VALUE_WEIGHT, Policy, init_critic
from rlkit.types import FullKL, KLDirection, OutputSpec, RolloutBatch

CPU = torch.device("cpu")
WAYS = [Switch.off, Switch.on]


def gradients(policy: Policy, logps: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad((logps * upstream).sum(), list(policy.adapter.values()))
    return dict(zip(policy.adapter, grads, strict=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logps_and_gradients_equal_those_of_transformers(family: str, way: Switch) -> None:
    policy = make_policy(tiny_model(family), shared_prefix=way)
    batch = three_groups()
    upstream = torch.randn(batch.completion_ids.shape, generator=torch.Generator().manual_seed(5))
    output = policy.forward(batch, adapter=policy.adapter, temperature=0.7)
    with policy.tuning.active(policy.adapter):
        expected = oracle_logps(policy.model, batch, temperature=0.7)
    assert expected.abs().max() > 1.0
    # transformers' RMSNorm and Gemma 2's softmax round to float32 inside a float64 model, so
    # another order of summation shows at 1e-7. Phi has neither: sharing itself is exact.
    tolerance = 1e-12 if way is Switch.off or family == "phi" else 1e-6
    torch.testing.assert_close(output.logps, expected, rtol=tolerance, atol=tolerance)
    actual = gradients(policy, output.logps, upstream.double())
    for key, truth in gradients(policy, expected, upstream.double()).items():
        error = (actual[key] - truth).abs().max()
        assert error < tolerance * truth.abs().max(), (key, float(error))


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(
            grouped_batch(prefix=20, rests=[3, 3], group_sizes=[3, 1], completions=[2, 3, 4, 5]),
            id="unequal groups",
        ),
        pytest.param(
            grouped_batch(prefix=20, rests=[0, 4], group_sizes=[2, 2], completions=[2, 3, 4, 5]),
            id="one prompt is the beginning of another",
        ),
        pytest.param(
            grouped_batch(prefix=3, rests=[9, 1], group_sizes=[2, 2], completions=[2, 3, 4, 5]),
            id="prefix too short",
        ),
        pytest.param(
            grouped_batch(prefix=20, rests=[0], group_sizes=[4], completions=[2, 3, 4, 5]),
            id="one prompt",
        ),
        pytest.param(
            grouped_batch(prefix=20, rests=[2, 1], group_sizes=[2, 2], completions=[1, 1, 1, 1]),
            id="one completion token",
        ),
        pytest.param(
            make_batch([random_ids(5, seed=1), [9]], [random_ids(3, seed=2), []]),
            id="empty completion, one-token prompt",
        ),
        pytest.param(
            grouped_batch(prefix=20, rests=[4, 4], group_sizes=[1, 1], completions=[3, 3]),
            id="groups of one",
        ),
    ],
)
def test_sharing_equals_the_plain_way_on_awkward_batches(batch: RolloutBatch) -> None:
    plain = make_policy(tiny_model("phi"), shared_prefix=Switch.off)
    shared = replace(plain, shared_prefix=Switch.on)
    outputs = [p.forward(batch, adapter=p.adapter, temperature=1.0).logps for p in (plain, shared)]
    with plain.tuning.active(plain.adapter):
        truth = oracle_logps(plain.model, batch, temperature=1.0)
    upstream = torch.linspace(-1, 2, truth.numel()).reshape(truth.shape).double()
    expected = gradients(plain, truth, upstream)
    for logps in outputs:
        torch.testing.assert_close(logps, truth, rtol=1e-10, atol=1e-10)
        for key, grad in gradients(plain, logps, upstream).items():
            torch.testing.assert_close(grad, expected[key], rtol=1e-8, atol=1e-10, msg=key)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["mistral", "phi3", "gemma2", "gemma3_text"])
def test_windows_shorter_than_the_rows_count_places_in_the_row(family: str, way: Switch) -> None:
    policy = make_policy(tiny_model(family, sliding_window=12), shared_prefix=way)
    batch = three_groups()
    logps = policy.forward(batch, adapter=policy.adapter, temperature=1.0).logps
    with policy.tuning.active(policy.adapter):
        truth = oracle_logps(policy.model, batch, temperature=1.0)
    tolerance = 1e-10 if way is Switch.off and family != "gemma2" else 1e-6  # as above
    torch.testing.assert_close(logps, truth, rtol=tolerance, atol=tolerance)
    wide = make_policy(tiny_model(family, sliding_window=64), shared_prefix=way)
    unlike = wide.forward(batch, adapter=wide.adapter, temperature=1.0).logps
    assert (unlike - logps).abs().max() > 1e-2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_adapter_scores_bitwise_like_the_reference(way: Switch, dtype: torch.dtype) -> None:
    model = tiny_model("llama", dtype=dtype)
    lora = attach(model, LoRAConfig(rank=8), dtype=dtype)
    adapter = init_adapter(lora, seed=0, device=CPU)
    policy = Policy(
        model=model, tuning=lora, head=head_of(model), adapter=adapter, shared_prefix=way
    )
    batch = three_groups()
    spec = OutputSpec(entropy=True, full_kl=FullKL(KLDirection.reverse))
    output = policy.forward(batch, adapter=adapter, temperature=0.9, spec=spec)
    with torch.no_grad():
        reference = policy.forward(batch, adapter=None, temperature=0.9)
    assert output.logps.requires_grad and not reference.logps.requires_grad
    assert output.logps.dtype == torch.float32
    assert torch.equal(output.logps, reference.logps)
    assert output.full_kl is not None
    assert torch.equal(output.full_kl, torch.zeros_like(output.full_kl))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_recomputes_with_the_adapter_of_the_forward_pass(
    family: str, way: Switch, nan_in_new_memory: None
) -> None:
    """Bitwise, and without reading what the second run leaves out."""
    plain = make_policy(tiny_model(family), shared_prefix=way)
    recomputing = replace(plain, gradient_checkpointing=Checkpointing.on)
    batch = three_groups()
    spec = OutputSpec(values=True)
    assert plain.critic is not None
    leaves = list(plain.named_parameters().values())

    def loss(policy: Policy) -> Tensor:
        output = policy.forward(batch, adapter=policy.adapter, temperature=1.0, spec=spec)
        assert output.values is not None
        return (output.logps * 0.3).sum() + output.values.square().sum()

    truth = torch.autograd.grad(loss(plain), leaves)
    total = loss(recomputing)
    # What is active during the backward pass must not matter, nor transformers' attention.
    assert plain.model.config._attn_implementation in ("sdpa", "eager")
    with plain.tuning.active({k: torch.zeros_like(v) for k, v in plain.adapter.items()}):
        actual = torch.autograd.grad(total, leaves)
    for a, b in zip(actual, truth, strict=True):
        assert b.abs().max() > 0
        assert torch.equal(a, b)
    assert not any(m.training for m in plain.model.modules())


@pytest.fixture
def nan_in_new_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


class Multiplications(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts those of matrix products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.removesuffix("_")
        if name in ("mm", "addmm"):
            left, right = args[-2:]
            self.count += left.shape[0] * left.shape[1] * right.shape[1]
        return func(*args, **(kwargs or {}))


def test_the_second_run_leaves_out_the_product_that_nobody_reads() -> None:
    """A layer's last one, W x + s B (A x): all but A x."""
    plain = make_policy(tiny_model("qwen2"))
    counts = {}
    for way in (Checkpointing.off, Checkpointing.on):
        policy = replace(plain, gradient_checkpointing=way)
        out = policy.forward(three_groups(), adapter=policy.adapter, temperature=1.0)
        with Multiplications() as products:
            torch.autograd.backward(out.logps.sum())
        counts[way] = products.count
    config = plain.model.config
    scoring = prepare(config, three_groups(), dtype=torch.float64, share=True)
    active = plain.tuning.active(plain.adapter)
    with Multiplications() as forward, torch.no_grad(), packed_attention(config), active:
        completion_states(backbone_of(plain.model), scoring)
    a_token = config.hidden_size * (config.intermediate_size + 4) * config.num_hidden_layers
    left_out = scoring.row.ids.numel() * a_token
    again = counts[Checkpointing.on] - counts[Checkpointing.off]
    assert 0 < again == forward.count - left_out


def test_checkpointing_really_recomputes() -> None:
    policy = make_policy(tiny_model("llama"), gradient_checkpointing=Checkpointing.on)
    calls: list[int] = []
    layer = policy.model.get_submodule("model.layers.0.mlp")
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    logps = policy.forward(three_groups(), adapter=policy.adapter, temperature=1.0).logps
    assert len(calls) == 1
    torch.autograd.backward(logps.sum())
    assert len(calls) == 2


@pytest.mark.parametrize("way", WAYS)
def test_entropy_equals_its_definition(way: Switch) -> None:
    policy = make_policy(tiny_model("gemma3_text"), shared_prefix=way)
    batch = make_batch([random_ids(6, seed=1)] * 2, [random_ids(3, seed=2), random_ids(2, seed=3)])
    spec = OutputSpec(entropy=True, entropy_grad=True)
    output = policy.forward(batch, adapter=policy.adapter, temperature=0.8, spec=spec)
    assert output.entropy is not None
    ids = torch.cat([batch.prompt_ids[1], batch.completion_ids[1, :2]])
    with policy.tuning.active(policy.adapter):
        logps = (policy.model(input_ids=ids[None]).logits[0] / 0.8).log_softmax(-1)
    expected = -(logps.exp() * logps).sum(-1)[5:7]
    tolerance = 1e-9 if way is Switch.off else 1e-6  # as above
    torch.testing.assert_close(output.entropy[1, :2], expected, rtol=tolerance, atol=tolerance)
    assert output.entropy[1, 2] == 0.0
    weight = next(v for k, v in policy.adapter.items() if k.endswith("lora_B.weight"))
    actual = torch.autograd.grad(output.entropy[1].sum(), weight)[0]
    truth = torch.autograd.grad(expected.sum(), weight)[0]
    torch.testing.assert_close(actual, truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("direction", [KLDirection.reverse, KLDirection.forward])
def test_full_kl_equals_the_sum_over_the_vocabulary(direction: KLDirection) -> None:
    policy = make_policy(tiny_model("granite"))
    batch = three_groups()
    spec = OutputSpec(full_kl=FullKL(direction))
    output = policy.forward(batch, adapter=policy.adapter, temperature=1.3, spec=spec)
    assert output.full_kl is not None
    row = 2
    ids = torch.cat([batch.prompt_ids[row][batch.prompt_mask[row]], batch.completion_ids[row, :1]])
    with policy.tuning.active(policy.adapter):
        p = (policy.model(input_ids=ids[None]).logits[0, -2] / 1.3).log_softmax(-1)
    with torch.no_grad(), policy.tuning.active(None):
        q = (policy.model(input_ids=ids[None]).logits[0, -2] / 1.3).log_softmax(-1)
    first, second = (p, q) if direction is KLDirection.reverse else (q, p)
    expected = (first.exp() * (first - second)).sum()
    assert expected > 0.01
    torch.testing.assert_close(output.full_kl[row, 0], expected, rtol=1e-8, atol=1e-10)
    weight = next(v for k, v in policy.adapter.items() if k.endswith("lora_B.weight"))
    actual = torch.autograd.grad(output.full_kl[row, 0], weight)[0]
    torch.testing.assert_close(actual, torch.autograd.grad(expected, weight)[0])


def test_values_come_from_the_critic_and_leave_the_policy_alone() -> None:
    policy = make_policy(tiny_model("llama"))
    assert policy.critic is not None
    batch = three_groups()
    spec = OutputSpec(values=True)
    output = policy.forward(batch, adapter=policy.adapter, temperature=1.0, spec=spec)
    assert output.values is not None
    head = (VALUE_WEIGHT, VALUE_BIAS)
    with policy.tuning.active({k: v for k, v in policy.critic.items() if k not in head}):
        ids = torch.cat([batch.prompt_ids[3][batch.prompt_mask[3]], batch.completion_ids[3, :2]])
        states = policy.model.base_model(input_ids=ids[None]).last_hidden_state[0]
    expected = (states @ policy.critic[VALUE_WEIGHT][0] + policy.critic[VALUE_BIAS])[-3:]
    torch.testing.assert_close(output.values[3, :3], expected, rtol=1e-9, atol=1e-9)
    unused = torch.autograd.grad(
        output.values.sum(), list(policy.adapter.values()), allow_unused=True, retain_graph=True
    )
    assert all(grad is None for grad in unused)
    used = torch.autograd.grad(output.values.sum(), list(policy.critic.values()))
    assert all(grad.abs().max() > 0 for grad in used)


def test_a_new_critic_predicts_zero_and_learns() -> None:
    policy = make_policy(tiny_model("llama"))
    assert isinstance(policy.tuning, LoRA)
    critic = init_critic(policy.tuning, num_hidden=32, seed=0, device=CPU)
    fresh = replace(policy, critic=critic)
    spec = OutputSpec(values=True)
    values = fresh.forward(three_groups(), adapter=None, temperature=1.0, spec=spec).values
    assert values is not None
    assert torch.equal(values, torch.zeros_like(values))
    (grad,) = torch.autograd.grad((values - 1.0).square().sum(), critic[VALUE_BIAS])
    # d/db of the sum over 22 tokens of (0 - 1)^2.
    assert grad.item() == -44.0


def test_a_prompt_without_tokens_is_refused() -> None:
    policy = make_policy(tiny_model("llama"))
    with pytest.raises(ValueError, match="at least one token"):
        policy.forward(make_batch([[5], []], [[6], [7]]), adapter=None, temperature=1.0)


def test_values_without_critic_are_refused() -> None:
    policy = replace(make_policy(tiny_model("llama")), critic=None)
    with pytest.raises(ValueError, match="critic"):
        policy.forward(three_groups(), adapter=None, temperature=1.0, spec=OutputSpec(values=True))


def test_padding_content_changes_nothing() -> None:
    policy = make_policy(tiny_model("llama"), shared_prefix=Switch.on)
    batch = three_groups()
    poisoned = replace(
        batch,
        prompt_ids=batch.prompt_ids.masked_fill(~batch.prompt_mask, 66),
        completion_ids=batch.completion_ids.masked_fill(~batch.completion_mask, 66),
    )
    for way in WAYS:
        chosen = replace(policy, shared_prefix=way)
        first = chosen.forward(batch, adapter=policy.adapter, temperature=1.0).logps
        second = chosen.forward(poisoned, adapter=policy.adapter, temperature=1.0).logps
        assert torch.equal(first, second)
