"""Tokens of an environment condition what follows and are scored by nobody."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_policies import make_policy, three_groups
from tiny_models import make_batch, oracle_logps, random_ids, tiny_model
from torch import Tensor

from rlkit.models.config import Switch
from rlkit.models.packing import context_lengths
from rlkit.policy.policy import Policy
from rlkit.types import FullKL, KLDirection, OutputSpec, RolloutBatch

WAYS = [Switch.off, Switch.on]


def episodes() -> tuple[RolloutBatch, RolloutBatch]:
    """Three groups of which an environment wrote tokens 1, 2 and 4, and the same ids all sampled.

    A row of one token, one that ends with words of the environment, and rows of three turns.
    """
    whole = three_groups()
    place = torch.arange(whole.completion_ids.shape[1])
    theirs = (place == 1) | (place == 2) | (place == 4)
    spliced = whole.completion_mask & theirs[None]
    turn_ids = torch.tensor([0, 0, 0, 1, 1, 2]).expand(spliced.shape)
    mask = whole.completion_mask & ~spliced
    return replace(whole, completion_mask=mask, spliced=spliced, turn_ids=turn_ids * mask), whole


def gradients(policy: Policy, logps: Tensor, upstream: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad((logps * upstream).sum(), list(policy.adapter.values())))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "phi", "gemma3_text"])
def test_sampled_tokens_are_scored_in_their_whole_context(family: str, way: Switch) -> None:
    policy = make_policy(tiny_model(family), shared_prefix=way)
    batch, whole = episodes()
    output = policy.forward(batch, adapter=policy.adapter, temperature=0.7)
    with policy.tuning.active(policy.adapter):
        truth = oracle_logps(policy.model, whole, temperature=0.7)
    truth = truth.masked_fill(~batch.completion_mask, 0.0)
    tolerance = 1e-12 if way is Switch.off or family == "phi" else 1e-6
    torch.testing.assert_close(output.logps, truth, rtol=tolerance, atol=tolerance)
    upstream = torch.linspace(-1, 2, truth.numel()).reshape(truth.shape).double()
    expected = gradients(policy, truth, upstream)
    for got, want in zip(gradients(policy, output.logps, upstream), expected, strict=True):
        assert (got - want).abs().max() <= tolerance * want.abs().max()


def test_every_output_is_that_of_the_whole_row_on_sampled_tokens() -> None:
    policy = make_policy(tiny_model("phi"), shared_prefix=Switch.on)
    batch, whole = episodes()
    spec = OutputSpec(entropy=True, values=True, full_kl=FullKL(KLDirection.reverse))
    parts, full = (
        policy.forward(b, adapter=policy.adapter, temperature=1.0, spec=spec)
        for b in (batch, whole)
    )
    for got, want in zip(parts, full, strict=True):
        assert got is not None and want is not None
        want = want.masked_fill(~batch.completion_mask, 0.0)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_what_the_environment_said_changes_what_follows_and_nothing_before(way: Switch) -> None:
    policy = make_policy(tiny_model("llama"), shared_prefix=way)
    batch, _ = episodes()
    said = batch.completion_ids.clone()
    said[1, 2] = (said[1, 2] + 1) % 60 + 3  # row 1 has six tokens; 0 | 3 | 5 are sampled
    before, after = (
        policy.forward(b, adapter=policy.adapter, temperature=1.0).logps
        for b in (batch, replace(batch, completion_ids=said))
    )
    assert before[1, 0] == after[1, 0]
    assert (before[1, [3, 5]] - after[1, [3, 5]]).abs().min() > 1e-3
    assert not bool(before[:, [1, 2, 4]].any())
    others = [0, 2, 3, 4, 5]
    torch.testing.assert_close(before[others], after[others], rtol=1e-12, atol=1e-12)


def test_an_episode_split_into_rows_of_one_turn_has_the_same_gradient() -> None:
    """The prompt of a turn is all that came before it; turns of an episode are not other samples,
    but their log-probabilities and gradients are those of such rows."""
    policy = make_policy(tiny_model("phi"), shared_prefix=Switch.on)
    batch, _ = episodes()
    prompts, turns, upstream_of = [], [], []
    weights = torch.linspace(0.5, 1.5, batch.completion_ids.numel()).view_as(batch.completion_ids)
    for row in range(len(batch)):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]].tolist()
        ids = batch.completion_ids[row].tolist()
        for t in batch.completion_mask[row].nonzero().flatten().tolist():
            prompts.append(prompt + ids[:t])
            turns.append([ids[t]])
            upstream_of.append([float(weights[row, t])])
    rows = policy.forward(make_batch(prompts, turns), adapter=policy.adapter, temperature=1.0).logps
    packed = policy.forward(batch, adapter=policy.adapter, temperature=1.0).logps
    kept = packed[batch.completion_mask]
    torch.testing.assert_close(kept, rows.flatten(), rtol=1e-10, atol=1e-10)
    one = gradients(policy, packed, weights.double())
    many = gradients(policy, rows, torch.tensor(upstream_of, dtype=torch.float64))
    for got, want in zip(one, many, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "phi", "gemma3_text"])
def test_a_context_that_begins_afresh_is_a_row_of_its_own(family: str, way: Switch) -> None:
    """Rows with two and three contexts, and one that goes on; each context alone is the truth."""
    policy = make_policy(tiny_model(family), shared_prefix=way)
    prompt, other = random_ids(19, seed=1), random_ids(22, seed=2)
    first, second, third, last = (random_ids(n, seed=n) for n in (3, 24, 17, 5))
    rows = [first + second + third, first + last, second]
    whole = make_batch([prompt, prompt, other], rows)
    restarts, spliced = (torch.zeros_like(whole.completion_mask) for _ in range(2))
    restarts[0, 3] = restarts[0, 27] = restarts[1, 3] = True
    spliced[0, 3:20] = spliced[0, 27:40] = spliced[1, 3:6] = True
    mask = whole.completion_mask & ~spliced
    batch = replace(whole, completion_mask=mask, spliced=spliced, restarts=restarts)
    contexts = make_batch(
        [prompt, second[:17], third[:13], prompt, last[:3], other],
        [first, second[17:], third[13:], first, last[3:], second],
    )
    output = policy.forward(batch, adapter=policy.adapter, temperature=0.7)
    with policy.tuning.active(policy.adapter):
        truth = oracle_logps(policy.model, contexts, temperature=0.7)[contexts.completion_mask]
    tolerance = 1e-12 if way is Switch.off or family == "phi" else 1e-6
    torch.testing.assert_close(output.logps[mask], truth, rtol=tolerance, atol=tolerance)
    upstream = torch.linspace(-1, 2, truth.numel()).double()
    expected = gradients(policy, truth, upstream)
    for got, want in zip(gradients(policy, output.logps[mask], upstream), expected, strict=True):
        assert (got - want).abs().max() <= tolerance * want.abs().max()
    assert context_lengths(batch).tolist() == [22, 24, 17, 22, 5, 46]
