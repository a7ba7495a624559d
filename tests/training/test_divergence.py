"""KL(policy || reference) at evaluation: against a softmax over the vocabulary in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import CPU, PAD, letter_prompts, tiny_run
from torch import Tensor

from rlkit.policy.policy import Policy
from rlkit.training.divergence import DivergenceMeter, EvalKL
from rlkit.training.stopping import StopRequest
from rlkit.types import Rollout, SamplingConfig


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, list[list[Rollout]]]:
    """A policy after two steps, and samples of it with different lengths."""
    trainer, state, _ = tiny_run(tmp_path_factory.mktemp("run"), num_steps=2)
    trainer.fit(state, stop=StopRequest())
    prompts = letter_prompts(step=50, attempt=0)
    rollouts = trainer.generator.generate(
        prompts,
        num_samples=4,
        sampling=SamplingConfig(max_completion_length=6),
        seeds=[[11 * i + j for j in range(4)] for i in range(len(prompts))],
    )
    assert isinstance(state.learner, Policy)
    return state.learner, rollouts


def meter(policy: Policy, estimator: EvalKL, *, tokens: int = 10_000) -> DivergenceMeter:
    return DivergenceMeter(
        learner=policy,
        estimator=estimator,
        temperature=1.0,
        pad_token_id=PAD,
        device=CPU,
        tokens_per_microbatch=tokens,
    )


def naive_rows(policy: Policy, rollout: Rollout, *, adapter: bool) -> Tensor:
    """(C, V) log-probabilities of one completion's positions, by one forward pass, float64."""
    ids = torch.tensor([[*rollout.prompt.ids, *rollout.completion_ids]])
    with torch.no_grad(), policy.tuning.active(policy.adapter if adapter else None):
        logits: Tensor = policy.model(ids).logits[0]
    return logits[len(rollout.prompt.ids) - 1 : -1].double().log_softmax(dim=-1)


def test_exact_and_k3_match_a_softmax_over_the_vocabulary(
    learnt: tuple[Policy, list[list[Rollout]]],
) -> None:
    policy, rollouts = learnt
    kl, k3, entropies = [], [], []
    for rollout in (r for group in rollouts for r in group):
        p = naive_rows(policy, rollout, adapter=True)
        q = naive_rows(policy, rollout, adapter=False)
        kl.append(float((p.exp() * (p - q)).sum()))
        entropies += (-(p.exp() * p).sum(dim=-1)).tolist()
        taken = torch.tensor(rollout.completion_ids)[:, None]
        d = (q - p).gather(1, taken)
        k3.append(float((d.exp() - d - 1).sum()))
    assert min(kl) > 1e-3
    for tokens in (10_000, 20):  # in one piece and in many
        exact = meter(policy, EvalKL.exact, tokens=tokens)(rollouts)
        assert exact["kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-4)
        assert exact["entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)
    sampled = meter(policy, EvalKL.k3)(rollouts)
    assert sampled["kl"] == pytest.approx(sum(k3) / len(k3), rel=1e-3)


def test_an_untrained_policy_has_no_divergence(tmp_path: Path) -> None:
    trainer, state, _ = tiny_run(tmp_path)
    prompts = letter_prompts(step=0, attempt=0)
    sampling = SamplingConfig(max_completion_length=6)
    seeds = [[1, 2]] * len(prompts)
    rollouts = trainer.generator.generate(prompts, num_samples=2, sampling=sampling, seeds=seeds)
    assert isinstance(state.learner, Policy)
    for estimator in (EvalKL.exact, EvalKL.k3):
        assert meter(state.learner, estimator)(rollouts)["kl"] == 0.0


def test_evaluations_say_how_much_training_they_cost(tmp_path: Path) -> None:
    trainer, state, tracker = tiny_run(tmp_path, num_steps=2)
    trainer.fit(state, stop=StopRequest())
    before, after = (record.metrics for record in tracker.evaluations)
    per_step = 3 * 4
    assert (before["samples"], after["samples"]) == (0.0, 2.0 * per_step)
    assert before["time/train"] == 0.0
    steps = sum(record.metrics["time/step"] for record in tracker.steps)
    assert after["time/train"] == pytest.approx(steps)
    assert 1.0 <= after["length"] <= 6.0
