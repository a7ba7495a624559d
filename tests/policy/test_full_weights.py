"""Training of all weights: gradients against plain transformers, float32 masters, files."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import grouped_batch, oracle_logps, tiny_model
from tiny_run import STOP, tiny_run, tiny_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rlkit.algorithms.grpo import GRPOConfig
from rlkit.models.config import Checkpointing, ModelConfig, TuningKind
from rlkit.models.families import head_of
from rlkit.models.load import BaseModel
from rlkit.models.save import save_model
from rlkit.policy.full_weights import FullWeights
from rlkit.policy.policy import CriticChoice, Policy, new_policy
from rlkit.training.optim import OptimConfig, OptimKind, build_optimizer
from rlkit.training.stopping import StopRequest
from rlkit.types import FullKL, KLDirection, OutputSpec, RolloutBatch

# Tied and untied heads, biases of layers and of the head, norms of queries and keys, caps, scales,
# fused projections.
FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "phi", "phi3", "cohere"]


def policy_of(model: PreTrainedModel, *, holds_reference: bool = True) -> Policy:
    full = FullWeights(model, dtype=model.dtype, holds_reference=holds_reference)
    return Policy(model=model, tuning=full, head=head_of(model), adapter=full.masters)


def three_groups() -> RolloutBatch:
    return grouped_batch(
        prefix=20, rests=[3, 7, 5], group_sizes=[2, 2, 2], completions=[4, 6, 1, 3, 6, 2]
    )


def gradients(loss: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: leaf.grad for name, leaf in leaves.items()}
    return {name: grad for name, grad in found.items() if grad is not None}


def moved(policy: Policy) -> None:
    """Change every weight a little, as training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for master in policy.adapter.values():
            noise = torch.randn(master.shape, generator=generator, dtype=torch.float64)
            master.add_(noise.to(master.dtype), alpha=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_gradient_is_that_of_plain_transformers(family: str) -> None:
    """Embeddings, norms, biases and head, of logps and of a differentiable entropy, in float64."""
    model = tiny_model(family)
    plain = copy.deepcopy(model).requires_grad_(True)
    way = Checkpointing.on if family in ("phi", "llama") else Checkpointing.off
    policy = replace(policy_of(model), gradient_checkpointing=way)
    batch = three_groups()
    upstream = torch.randn(batch.completion_ids.shape, generator=torch.Generator().manual_seed(5))
    spec = OutputSpec(entropy=True, entropy_grad=True)
    output = policy.forward(batch, adapter=policy.adapter, temperature=0.7, spec=spec)
    assert output.entropy is not None
    actual = gradients((output.logps * upstream).sum() + output.entropy.sum(), policy.adapter)
    entropy = oracle_entropy(plain, batch, temperature=0.7)
    truth = oracle_logps(plain, batch, temperature=0.7)
    expected = gradients((truth * upstream).sum() + entropy, dict(plain.named_parameters()))
    torch.testing.assert_close(output.logps, truth, rtol=1e-6, atol=1e-6)
    assert actual.keys() == expected.keys() == policy.adapter.keys()
    for name, grad in expected.items():
        assert grad.abs().max() > 0
        assert (actual[name] - grad).norm() < 1e-6 * grad.norm(), name


def oracle_entropy(model: PreTrainedModel, batch: RolloutBatch, *, temperature: float) -> Tensor:
    """Summed over all completion tokens."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(batch)):
        prompt = batch.prompt_ids[i][batch.prompt_mask[i]]
        ids = torch.cat([prompt, batch.completion_ids[i][batch.completion_mask[i]]])
        logits = model(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
        logps = (logits / temperature).log_softmax(-1)
        total = total - (logps.exp() * logps).sum()
    return total


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_the_reference_stays_what_the_policy_was(family: str) -> None:
    """Its logps, and the exact KL between two models with heads of their own, with gradients."""
    model = tiny_model(family)
    first, plain = copy.deepcopy(model), copy.deepcopy(model).requires_grad_(True)
    policy, batch = policy_of(model), three_groups()
    spec = OutputSpec(full_kl=FullKL(KLDirection.reverse))
    start = policy.forward(batch, adapter=policy.adapter, temperature=1.0, spec=spec)
    assert start.full_kl is not None and not start.full_kl.any()
    reference = policy.forward(batch, adapter=None, temperature=1.0)
    assert torch.equal(start.logps, reference.logps) and not reference.logps.requires_grad
    moved(policy)
    with torch.no_grad():
        for weight, master in zip(plain.parameters(), policy.adapter.values(), strict=True):
            weight.copy_(master)
    again = policy.forward(batch, adapter=None, temperature=1.0)
    assert torch.equal(again.logps, reference.logps)
    output = policy.forward(batch, adapter=policy.adapter, temperature=1.0, spec=spec)
    assert output.full_kl is not None
    kl = exact_kl(plain, first, batch)
    torch.testing.assert_close(output.full_kl.sum(), kl, rtol=1e-6, atol=0.0)
    actual = gradients(output.full_kl.sum(), policy.adapter)
    expected = gradients(kl, dict(plain.named_parameters()))
    for name, grad in expected.items():
        assert (actual[name] - grad).norm() < 1e-5 * grad.norm(), name


def exact_kl(model: PreTrainedModel, reference: PreTrainedModel, batch: RolloutBatch) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(batch)):
        prompt = batch.prompt_ids[i][batch.prompt_mask[i]]
        ids = torch.cat([prompt, batch.completion_ids[i][batch.completion_mask[i]]])
        p, q = (
            m(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            for m in (model, reference)
        )
        total = total + (p.exp() * (p - q.detach())).sum()
    return total


def test_without_a_reference_none_is_held_and_none_is_made_up() -> None:
    policy = policy_of(tiny_model("llama"), holds_reference=False)
    with pytest.raises(ValueError, match="the reference policy must be held"):
        policy.forward(three_groups(), adapter=None, temperature=1.0)
    others = {name: leaf.detach().clone() for name, leaf in policy.adapter.items()}
    with pytest.raises(ValueError, match="must be its own masters"):
        policy.forward(three_groups(), adapter=others, temperature=1.0)


def test_gradients_of_micro_batches_add_up_in_float32() -> None:
    policy, batch = policy_of(tiny_model("qwen2", dtype=torch.bfloat16)), three_groups()
    parts = [torch.arange(0, 3), torch.arange(3, 6)]

    def run(rows: list[Tensor]) -> dict[str, Tensor]:
        for part in rows:
            micro = batch.rows(part)
            logps = policy.forward(micro, adapter=policy.adapter, temperature=1.0).logps
            logps.sum().backward()  # type: ignore[no-untyped-call]
        found = {}
        for name, master in policy.adapter.items():
            assert master.grad is not None
            found[name], master.grad = master.grad, None
        return found

    one, other, both = run(parts[:1]), run(parts[1:]), run(parts)
    for name, total in both.items():
        assert total.dtype == torch.float32
        # Each part is of bfloat16, their sum need not be.
        assert torch.equal(one[name], one[name].bfloat16().float())
        assert torch.equal(total, one[name] + other[name])
    assert all(parameter.grad is None for parameter in policy.model.parameters())
    assert any(not torch.equal(total, total.bfloat16().float()) for total in both.values())


@pytest.mark.parametrize("kind", [OptimKind.adamw, OptimKind.adamw8bit])
def test_masters_keep_updates_that_16_bits_would_lose(kind: OptimKind) -> None:
    """Adam by hand in float32; the copies that compute are the rounded masters, after any step."""
    policy = policy_of(tiny_model("llama", dtype=torch.bfloat16))
    start = {name: master.detach().clone() for name, master in policy.adapter.items()}
    rate, steps = 1e-5, 40
    config = OptimConfig(kind=kind, learning_rate=rate)
    optimizer = build_optimizer(policy.adapter, config)
    batch, name = three_groups(), "model.layers.1.mlp.down_proj.weight"
    expected = start[name].clone()
    m = torch.zeros_like(expected)
    v = torch.zeros_like(expected)
    for step in range(1, steps + 1):
        logps = policy.forward(batch, adapter=policy.adapter, temperature=1.0).logps
        logps.sum().neg().backward()  # type: ignore[no-untyped-call]
        grad = policy.adapter[name].grad
        assert grad is not None
        m.mul_(0.9).add_(grad, alpha=0.1)
        v.mul_(0.999).addcmul_(grad, grad, value=0.001)
        scale = (v / (1 - 0.999**step)).sqrt_().add_(1e-8)
        expected.addcdiv_(m / (1 - 0.9**step), scale, value=-rate)
        optimizer.step()
        optimizer.zero_grad()
    master, first = policy.adapter[name].detach(), start[name]
    torch.testing.assert_close(master, expected, rtol=0, atol=0.02 * rate)
    assert (master - first).abs().median() > 10 * rate
    large = first.abs() > 0.1  # where bfloat16 numbers are 40 updates apart
    assert torch.equal((first.bfloat16() - rate)[large], first.bfloat16()[large])
    tuning = policy.tuning
    assert isinstance(tuning, FullWeights)
    parameters = dict(policy.model.named_parameters())
    for key, copied in tuning.copies(policy.adapter).items():
        assert torch.equal(copied, policy.adapter[key].bfloat16())
        assert copied.data_ptr() == parameters[key].data_ptr()
    assert not torch.equal(parameters[name], first.bfloat16())


def test_a_master_that_goes_leaves_its_copy_and_takes_gradients_without_memory() -> None:
    batch, spec = three_groups(), OutputSpec()
    whole = policy_of(tiny_model("llama", dtype=torch.bfloat16))
    part = policy_of(tiny_model("llama", dtype=torch.bfloat16))
    tuning = part.tuning
    assert isinstance(tuning, FullWeights)
    own = {name for number, name in enumerate(part.adapter) if number % 2}
    tuning.keep(own)
    for policy in (whole, part):
        out = policy.forward(batch, adapter=policy.adapter, temperature=1.0, spec=spec)
        out.logps.sum().backward()  # type: ignore[no-untyped-call]
    first = {name: copied.clone() for name, copied in tuning.copies(part.adapter).items()}
    for name, leaf in part.adapter.items():
        expected = whole.adapter[name].grad
        assert leaf.grad is not None and expected is not None
        assert torch.equal(leaf.grad, expected) and leaf.shape == expected.shape
        assert leaf.untyped_storage().nbytes() == (leaf.nbytes if name in own else 4)
    with torch.no_grad():
        for name in own:
            part.adapter[name].add_(1.0)
    for name, copied in tuning.copies(part.adapter).items():
        # A copy follows its master; one whose master is elsewhere stays what it was.
        wanted = part.adapter[name].bfloat16() if name in own else first[name]
        assert torch.equal(copied, wanted)


def test_a_float32_model_is_its_own_master() -> None:
    policy = policy_of(tiny_model("llama", dtype=torch.float32))
    for name, parameter in policy.model.named_parameters():
        assert policy.adapter[name] is parameter


def test_all_weights_learn_the_letter(tmp_path: Path) -> None:
    optim, algorithm = OptimConfig(learning_rate=3e-3), GRPOConfig(group_size=8)
    trainer, state, tracker = tiny_run(
        tmp_path,
        num_steps=12,
        optim=optim,
        algorithm=algorithm,
        dtype=torch.bfloat16,
        tuning=TuningKind.full,
    )
    trainer.fit(state, stop=StopRequest())
    before, after = tracker.evaluations
    assert before.interval.mean < 0.4
    assert after.interval.mean > 0.95
    kl = [record.metrics["kl"] for record in tracker.steps]
    assert kl[0] == 0.0 < kl[-1]


@pytest.mark.parametrize("tied", [True, False])
def test_the_saved_model_is_one_of_transformers(tmp_path: Path, tied: bool) -> None:
    """Weights that are views of one storage, as with an engine's; tied heads; the tokenizer."""
    model = tiny_model("llama", dtype=torch.bfloat16, tie_word_embeddings=tied)
    attention = model.get_submodule("model.layers.0.self_attn")
    parts = [attention.get_submodule(f"{x}_proj") for x in "qkv"]
    fused = torch.cat([part.get_parameter("weight").detach() for part in parts])
    for part, view in zip(parts, torch.split(fused, [32, 16, 16]), strict=True):
        part.weight = torch.nn.Parameter(view, requires_grad=False)
    base = BaseModel(
        model=model,
        tokenizer=tiny_tokenizer(),
        location="",
        dtype=torch.bfloat16,
        stop_ids=frozenset({STOP}),
        gradient_checkpointing=Checkpointing.off,
        notes=(),
    )
    base.tokenizer.chat_template = "{{ messages[0].content }}"
    policy = new_policy(base, ModelConfig(tuning=TuningKind.full), seed=0)
    moved(policy)
    tuning = policy.tuning
    assert isinstance(tuning, FullWeights)
    folder = tmp_path / "model"
    for _ in range(2):  # the second replaces the first
        save_model(folder, model, base.tokenizer, tuning.copies(policy.adapter), rope_length=None)
    loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    assert loaded.dtype == torch.bfloat16
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    for name, buffer in model.named_buffers():  # `tiny_model` rounds RoPE's frequencies too
        owner, _, leaf = name.rpartition(".")
        loaded.get_submodule(owner).register_buffer(leaf, buffer)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == base.tokenizer.chat_template
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_critic_needs_an_adapter() -> None:
    base = BaseModel(
        model=tiny_model("llama"),
        tokenizer=tiny_tokenizer(),
        location="",
        dtype=torch.float64,
        stop_ids=frozenset({STOP}),
        gradient_checkpointing=Checkpointing.off,
        notes=(),
    )
    config = ModelConfig(tuning=TuningKind.full)
    with pytest.raises(ValueError, match=r"a critic needs model\.tuning=lora, got full"):
        new_policy(base, config, seed=0, critic=CriticChoice.lora)
    assert replace(config, tuning=TuningKind.lora).lora.rank == 16
