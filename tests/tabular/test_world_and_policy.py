"""The table: enumeration, sampling and scoring agree with each other and with plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from rlkit.tabular import TabularGeneratorConfig, TabularModelConfig, TabularTaskConfig
from rlkit.tabular.evaluate import expectations
from rlkit.tabular.generator import TabularGenerator
from rlkit.tabular.policy import TabularPolicy, new_policy
from rlkit.tabular.rewards import TableRewards
from rlkit.tabular.world import TabularWorld, make_world, sampler_noise, states_of
from rlkit.types import (
    Completion,
    FinishReason,
    FullKL,
    KLDirection,
    OutputSpec,
    Prompt,
    Rollout,
    RolloutBatch,
    SamplingConfig,
)

SPEC = OutputSpec(entropy=True, values=True, full_kl=FullKL(KLDirection.reverse))


def small_world(**task: object) -> TabularWorld:
    options = {"num_prompts": 2, "max_completion_length": 3, **task}
    return make_world(
        TabularModelConfig(vocabulary=3),
        TabularTaskConfig(**options),  # type: ignore[arg-type]
    )


def moved(world: TabularWorld) -> TabularPolicy:
    """A policy away from the reference, by numbers without a pattern."""
    policy = new_policy(world, critic=True)
    assert policy.values is not None
    with torch.no_grad():
        steps = torch.arange(policy.logits.numel(), dtype=torch.float64).view_as(policy.logits)
        policy.logits.add_(torch.sin(steps * 1.7))
        values = torch.arange(policy.values.numel(), dtype=torch.float64)
        policy.values.add_(torch.cos(values).view_as(policy.values))
    return policy


def every_completion(world: TabularWorld, prompt: int) -> RolloutBatch:
    """All completions of one prompt as a batch."""
    tree, num_rows = world.tree, len(world.tree)
    zeros = torch.zeros(tree.ids.shape)
    return RolloutBatch(
        prompt_ids=torch.full((num_rows, 1), prompt),
        prompt_mask=torch.ones(num_rows, 1, dtype=torch.bool),
        completion_ids=tree.ids,
        completion_mask=tree.mask,
        sampling_logps=zeros,
        rewards=world.rewards[prompt],
        reward_components=world.rewards[prompt][:, None],
        reward_weights=torch.ones(1),
        group_ids=torch.zeros(num_rows, dtype=torch.long),
        truncated=torch.zeros(num_rows, dtype=torch.bool),
        policy_version=torch.zeros(num_rows, dtype=torch.long),
    )


def test_states_are_those_of_the_tree() -> None:
    for vocabulary in (2, 3, 5):
        model = TabularModelConfig(vocabulary=vocabulary)
        tree = make_world(model, TabularTaskConfig(max_completion_length=4)).tree
        assert torch.equal(states_of(tree.ids, tree.mask, num_words=vocabulary), tree.states)


def test_forward_matches_a_loop_over_prefixes() -> None:
    world = small_world()
    policy = moved(world)
    for prompt in range(2):
        batch = every_completion(world, prompt)
        out = policy.forward(batch, adapter=policy.adapter, temperature=0.7, spec=SPEC)
        assert out.entropy is not None and out.full_kl is not None and out.values is not None
        prefixes = {p: i for i, p in enumerate(world.tree.prefixes)}
        for n in range(len(world.tree)):
            length = int(world.tree.mask[n].sum())
            words = world.tree.ids[n, :length].tolist()
            for t, word in enumerate(words):
                state = prefixes[tuple(words[:t])]
                p = softmax(policy.logits[prompt, state].tolist(), 0.7)
                q = softmax(world.ref_logits[prompt, state].tolist(), 0.7)
                kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
                entropy = -sum(a * math.log(a) for a in p)
                found = [x[n, t].item() for x in (out.logps, out.full_kl, out.entropy, out.values)]
                value = policy.values[prompt, state].item() if policy.values is not None else 0.0
                assert found == pytest.approx([math.log(p[word]), kl, entropy, value], rel=1e-12)
            assert not out.logps[n, length:].any()


def test_expectations_match_a_loop_over_completions() -> None:
    world = small_world(num_prompts=1)
    policy = moved(world)
    found = expectations(world, policy.logits.detach())
    reward = kl = entropy = length = wrong = total = 0.0
    prefixes = {p: i for i, p in enumerate(world.tree.prefixes)}
    for n in range(len(world.tree)):
        words = world.tree.ids[n, : int(world.tree.mask[n].sum())].tolist()
        log_p = log_q = 0.0
        for t, word in enumerate(words):
            state = prefixes[tuple(words[:t])]
            log_p += math.log(softmax(policy.logits[0, state].tolist(), 1.0)[word])
            log_q += math.log(softmax(world.ref_logits[0, state].tolist(), 1.0)[word])
        chance, r = math.exp(log_p), world.rewards[0, n].item()
        total += chance
        reward += chance * r
        kl += chance * (log_p - log_q)
        entropy -= chance * log_p
        length += chance * len(words)
        wrong += chance * (1 - r) * len(words)
    assert total == pytest.approx(1.0, abs=1e-12)
    assert [x.item() for x in found] == pytest.approx([reward, kl, entropy, length, wrong])


def test_sampling_follows_the_table() -> None:
    """100,000 samples: every completion within 5 standard errors of its probability."""
    world = small_world(num_prompts=1)
    policy = moved(world)
    rollouts = sample(policy, world, count=100_000, noise=0.0)
    counts: dict[tuple[int, ...], int] = {}
    for rollout in rollouts:
        counts[rollout.completion_ids] = counts.get(rollout.completion_ids, 0) + 1
    out = policy.forward(
        every_completion(world, 0), adapter=policy.adapter, temperature=1.0, spec=OutputSpec()
    )
    logps = {}
    for n in range(len(world.tree)):
        length = int(world.tree.mask[n].sum())
        words = tuple(world.tree.ids[n, :length].tolist())
        p = math.exp(float(out.logps[n].sum()))
        logps[words] = out.logps[n, :length].tolist()
        error = math.sqrt(p * (1 - p) / len(rollouts))
        assert abs(counts.get(words, 0) / len(rollouts) - p) < 5 * error
    for rollout in rollouts[:50]:
        assert list(rollout.sampling_logps) == pytest.approx(logps[rollout.completion_ids])
        stopped = rollout.finish_reason is FinishReason.stop
        assert stopped == (rollout.completion_ids[-1] == 0)


def test_noise_changes_what_is_sampled_and_reported_but_not_the_policy() -> None:
    world = small_world(num_prompts=1)
    policy = new_policy(world, critic=False)
    clean, noisy = (sample(policy, world, count=200, noise=n) for n in (0.0, 1.0))
    assert [r.completion_ids for r in clean] != [r.completion_ids for r in noisy]
    noise = sampler_noise(TabularGeneratorConfig(logit_noise=1.0), world)
    root = (world.ref_logits + noise)[0, 0].log_softmax(dim=-1)
    for rollout in noisy:
        assert rollout.sampling_logps[0] == pytest.approx(root[rollout.completion_ids[0]].item())


def test_a_sample_depends_on_its_seed_alone() -> None:
    world = small_world()
    generator = TabularGenerator(world.ref_logits, torch.zeros_like(world.ref_logits))
    prompts = [Prompt(index=i, ids=(i,), text=str(i)) for i in (1, 0)]
    sampling = SamplingConfig(max_completion_length=3)
    both = generator.generate(prompts, num_samples=2, sampling=sampling, seeds=[[5, 6], [7, 8]])
    alone = generator.generate(prompts[1:], num_samples=1, sampling=sampling, seeds=[[8]])
    assert alone[0][0].completion_ids == both[1][1].completion_ids


def test_rewards_are_those_of_the_world_and_never_absent() -> None:
    world = small_world(densities=[0.001, 0.5])
    tree = world.tree
    assert world.rewards.sum(dim=1).min() >= 1
    rewards = TableRewards(world)
    for prompt in range(2):
        completions = []
        for n in range(len(tree)):
            ids = tuple(tree.ids[n, : int(tree.mask[n].sum())].tolist())
            where = Prompt(index=prompt, ids=(prompt,), text="")
            reason = FinishReason.stop
            completions.append(Completion(prompt=where, text="", ids=ids, finish_reason=reason))
        assert rewards.score([completions]).rewards == [world.rewards[prompt].tolist()]


def sample(
    policy: TabularPolicy, world: TabularWorld, *, count: int, noise: float
) -> list[Rollout]:
    errors = sampler_noise(TabularGeneratorConfig(logit_noise=noise), world)
    generator = TabularGenerator(policy.logits, errors)
    (rollouts,) = generator.generate(
        [Prompt(index=0, ids=(0,), text="")],
        num_samples=count,
        sampling=SamplingConfig(max_completion_length=world.tree.ids.shape[1]),
        seeds=[[7919 * i for i in range(count)]],
    )
    return rollouts


def softmax(logits: list[float], temperature: float) -> list[float]:
    weights = [math.exp(x / temperature) for x in logits]
    return [w / sum(weights) for w in weights]
