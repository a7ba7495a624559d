"""Each algorithm end to end on small batches, against loops and numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from oracles import (
    gradients,
    leaf_outputs,
    loop_gae,
    loop_group_advantages,
    loop_grpo_loss,
    random_rollout,
    setting,
)
from torch import Tensor

from rlkit.algorithms import build
from rlkit.oracle.compose import composed
from rlkit.types import Algorithm, Column, PolicyOutput, RolloutBatch

LENGTHS = (6, 1, 3, 2, 4, 5, 6, 2)


def make(*overrides: str, updates: int = 2, group_size: int = 4) -> Algorithm:
    objective = composed(*overrides, f"algorithm.group_size={group_size}")
    return build(objective, setting(group_size=group_size, updates=updates))


def rollout_with(rewards: Sequence[float] | None = None, **changes: Tensor) -> RolloutBatch:
    rollout = random_rollout(lengths=LENGTHS, group_size=4)
    if rewards is not None:
        rollout = replace(rollout, rewards=torch.tensor(rewards, dtype=torch.float64))
    return replace(rollout, **changes)


def test_grpo_loss_against_a_loop() -> None:
    rollout = rollout_with()
    algorithm = make("kl.beta=0.3", "ratio.clip_high=0.28")
    batch, out = algorithm.prepare(rollout), leaf_outputs(rollout)
    assert rollout.old_logps is not None and rollout.ref_logps is not None
    advantages = loop_group_advantages(rollout.rewards.tolist(), 4, eps=1e-4, bessel=True)
    assert batch.advantages[:, 0].tolist() == pytest.approx(advantages, abs=1e-12)
    want = loop_grpo_loss(
        out.logps.detach(),
        rollout.old_logps,
        rollout.ref_logps,
        advantages,
        rollout.completion_mask,
        low=0.2,
        high=0.28,
        beta=0.3,
    )
    got = algorithm.loss(out, batch)
    assert float(got.loss.detach()) == pytest.approx(want, abs=1e-12)
    assert algorithm.needs == {Column.old_logps, Column.ref_logps}
    assert make(updates=1).needs == {Column.ref_logps}
    assert make("kl=none", updates=1).needs == frozenset()


@pytest.mark.parametrize("seed", [1, 2])
def test_metrics_against_a_loop(seed: int) -> None:
    rollout = rollout_with()
    algorithm = make("ratio.clip_high=0.28")
    batch, out = algorithm.prepare(rollout), leaf_outputs(rollout, seed=seed)
    old, ref = rollout.old_logps, rollout.ref_logps
    assert old is not None and ref is not None and out.entropy is not None
    total = dict.fromkeys(("low", "high", "kl", "entropy", "signal"), 0.0)
    for i, t in rollout.completion_mask.nonzero().tolist():
        r = math.exp(float(out.logps[i, t] - old[i, t]))
        a = float(batch.advantages[i, t])
        d = float(ref[i, t] - out.logps[i, t])
        total["low"] += r < 0.8 and a < 0
        total["high"] += r > 1.28 and a > 0
        total["kl"] += math.exp(d) - d - 1
        total["entropy"] += float(out.entropy[i, t])
        total["signal"] += abs(a)
    n = sum(LENGTHS)
    metrics = {name: float(value) for name, value in algorithm.loss(out, batch).metrics.items()}
    assert total["low"] > 0 and total["high"] > 0
    assert metrics["clip_ratio/low_mean"] == pytest.approx(total["low"] / n)
    assert metrics["clip_ratio/high_mean"] == pytest.approx(total["high"] / n)
    region = (total["low"] + total["high"]) / n
    assert metrics["clip_ratio/region_mean"] == pytest.approx(region)
    assert metrics["kl"] == pytest.approx(total["kl"] / n)
    assert metrics["entropy"] == pytest.approx(total["entropy"] / n)
    assert metrics["pg_signal"] == pytest.approx(total["signal"] / n)


def test_kl_is_logged_as_k3_whatever_the_loss_uses() -> None:
    rollout = rollout_with()
    values = set()
    for kl in ("reverse_k3", "reverse_k1", "forward_exact", "reverse_k1_reward"):
        algorithm = make(f"kl={kl}")
        out = algorithm.loss(leaf_outputs(rollout), algorithm.prepare(rollout))
        values.add(round(float(out.metrics["kl"]), 12))
    assert len(values) == 1


def test_the_seeds_loss_in_value_and_gradient() -> None:
    """-(exp(q - sg q) A - 0.04 k3), sum over tokens / number of tokens: unsloth-zoo e813ca73."""
    rollout = rollout_with()
    algorithm = make("algorithm=unsloth_2025", updates=1)
    batch, out = algorithm.prepare(rollout), leaf_outputs(rollout)
    got = algorithm.loss(out, batch)
    got.loss.backward()  # type: ignore[no-untyped-call]
    ref, mask = rollout.ref_logps, rollout.completion_mask
    assert ref is not None and out.logps.grad is not None
    d = (ref - out.logps).detach()
    per_token = -(batch.advantages - 0.04 * (d.exp() - d - 1))
    assert float(got.loss) == pytest.approx(float(per_token[mask].sum()) / sum(LENGTHS))
    slope = (-batch.advantages + 0.04 * (1 - d.exp())) / sum(LENGTHS)
    assert torch.allclose(out.logps.grad, slope.masked_fill(~mask, 0.0), atol=1e-15)


def test_truncated_completions_can_be_masked() -> None:
    rollout = rollout_with()
    batch = make("algorithm.mask_truncated=true").prepare(rollout)
    assert rollout.truncated.tolist() == [n == 6 for n in LENGTHS]
    assert batch.loss_mask.sum(dim=1).tolist() == [0, 1, 3, 2, 4, 5, 0, 2]
    assert (batch.num_tokens, batch.num_sequences) == (17, 6)
    plain = make().prepare(rollout)
    assert (plain.num_tokens, plain.num_sequences) == (29, 8)
    kept = ~rollout.truncated
    assert torch.equal(batch.advantages[kept], plain.advantages[kept])


@pytest.mark.parametrize("kind", ["mask", "resample"])
def test_groups_of_equal_rewards_leave_the_loss(kind: str) -> None:
    rollout = rollout_with([0.1, 0.1, 0.1, 0.1, 1.0, 0.0, 0.0, 0.0])
    batch = make(f"algorithm.group_filter={kind}").prepare(rollout)
    assert batch.loss_mask.any(dim=1).tolist() == [False] * 4 + [True] * 4
    assert (batch.num_tokens, batch.num_sequences) == (17, 4)
    assert make().prepare(rollout).num_sequences == 8


def test_soft_length_penalty_lowers_rewards() -> None:
    """Limit 6, fraction 0.5: 0 up to 3 tokens, -1/3 at 4, -2/3 at 5, -1 at 6, times the scale 2."""
    overrides = ("algorithm.overlong_fraction=0.5", "algorithm.overlong_scale=2")
    algorithm = make("algorithm=dr_grpo", *overrides)
    batch = algorithm.prepare(rollout_with([0.0] * 8))
    rewards = [-2.0, 0.0, 0.0, 0.0, -2 / 3, -4 / 3, -2.0, 0.0]
    want = [r - sum(rewards[i - i % 4 : i - i % 4 + 4]) / 4 for i, r in enumerate(rewards)]
    assert batch.advantages[:, 0].tolist() == pytest.approx(want, abs=1e-7)


@pytest.mark.parametrize(
    ("overrides", "want"),
    [
        (("baseline=none", "scale=none"), [1.0, 0.0, 2.0, 5.0]),
        (("baseline=batch_mean", "scale=none"), [-1.0, -2.0, 0.0, 3.0]),
        (("baseline=group_mean", "scale=none"), [0.5, -0.5, -1.5, 1.5]),
        (("baseline=leave_one_out", "scale=none"), [1.0, -1.0, -3.0, 3.0]),
        (
            ("baseline=group_mean", "scale=group_std"),
            [0.5**0.5, -(0.5**0.5), -(0.5**0.5), 0.5**0.5],
        ),
        (
            ("baseline=group_mean", "scale=batch_std"),
            [x / (14 / 3) ** 0.5 for x in (0.5, -0.5, -1.5, 1.5)],
        ),
        (
            ("baseline=group_mean", "scale=whiten"),
            [x / (5 / 3) ** 0.5 for x in (0.5, -0.5, -1.5, 1.5)],
        ),
    ],
)
def test_baselines_and_scales_by_hand(overrides: tuple[str, str], want: list[float]) -> None:
    """Rewards 1 0 | 2 5: batch mean 2, batch variance 14/3; centred 1/2 -1/2 -3/2 3/2."""
    keys = [f"algorithm.advantage.{o}" for o in overrides]
    algorithm = make(*keys, "algorithm.advantage.eps=0", group_size=2)
    rollout = replace(
        random_rollout(lengths=(2, 1, 3, 2), group_size=2),
        rewards=torch.tensor([1.0, 0.0, 2.0, 5.0], dtype=torch.float64),
    )
    assert algorithm.prepare(rollout).advantages[:, 0].tolist() == pytest.approx(want, abs=1e-12)


def test_reinforce_pp_whitens_rewards_less_the_kl_to_go() -> None:
    rollout = rollout_with()
    batch = make("algorithm=reinforce_pp").prepare(rollout)
    old, ref, mask = rollout.old_logps, rollout.ref_logps, rollout.completion_mask
    assert old is not None and ref is not None
    raw = torch.zeros_like(old)
    for i, t in mask.nonzero().tolist():
        later = mask[i] & (torch.arange(6) >= t)
        raw[i, t] = rollout.rewards[i] - 0.04 * (old - ref)[i, later].sum()
    want = (raw[mask] - raw[mask].mean()) / (raw[mask].std() + 1e-4)
    assert torch.allclose(batch.advantages[mask], want, atol=1e-12)


def test_rows_without_a_reward_have_no_advantage() -> None:
    nan = float("nan")
    batch = make("kl=none").prepare(rollout_with([nan, 1.0, 0.0, 1.0, nan, nan, nan, nan]))
    want = loop_group_advantages([1.0, 0.0, 1.0], 3, eps=1e-4, bessel=True)
    assert batch.advantages[:, 0].tolist() == pytest.approx([0.0, *want, 0.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("correction", "level"),
    [
        ("token_tis", "token"),
        ("token_mask", "token"),
        ("sequence_tis", "sequence"),
        ("sequence_mask", "sequence"),
    ],
)
def test_correction_multiplies_the_policy_loss_only(correction: str, level: str) -> None:
    """Bounds 0.9 to 1.1, so that some weights are cut; the KL term keeps weight 1."""
    rollout = rollout_with()
    bounds = ("correction.low=0.9", "correction.high=1.1")
    algorithm = make(f"correction={correction}", *bounds, "algorithm.aggregation=token_mean")
    plain = make("algorithm.aggregation=token_mean")
    batch, out = algorithm.prepare(rollout), leaf_outputs(rollout)
    old, mask = rollout.old_logps, rollout.completion_mask
    assert old is not None
    total, cut = 0.0, 0
    for i, t in mask.nonzero().tolist():
        d = (old - rollout.sampling_logps)[i]
        w = math.exp(float(d[mask[i]].sum() if level == "sequence" else d[t]))
        cut += not 0.9 <= w <= 1.1
        if correction.endswith("mask"):
            w = w if 0.9 <= w <= 1.1 else 0.0
        w = min(max(w, 0.9), 1.1) if correction.endswith("tis") else w
        r, a = math.exp(float(out.logps[i, t] - old[i, t])), float(batch.advantages[i, t])
        total -= w * min(r * a, min(max(r, 0.8), 1.2) * a)
    got, without = algorithm.loss(out, batch), plain.loss(out, batch)
    assert cut > 0
    assert float(got.metrics["loss/policy"]) == pytest.approx(total / sum(LENGTHS))
    assert torch.equal(got.metrics["loss/kl"], without.metrics["loss/kl"])


def test_entropy_bonus_and_mask() -> None:
    rollout = rollout_with()
    out = leaf_outputs(rollout)
    mask = rollout.completion_mask
    assert out.entropy is not None
    algorithm = make("algorithm.entropy_coef=0.5", "kl=none")
    batch = algorithm.prepare(rollout)
    bonus = algorithm.loss(out, batch).loss - make("kl=none").loss(out, batch).loss
    assert float(bonus) == pytest.approx(-0.5 * float(out.entropy[mask].mean()))
    assert algorithm.outputs.entropy_grad and not make().outputs.entropy_grad
    make("algorithm.entropy_fraction=0.2", "kl=none").loss(out, batch).loss.backward()  # type: ignore[no-untyped-call]
    used = gradients(out)[0] != 0
    top = out.entropy.detach() >= torch.quantile(out.entropy.detach()[mask], 0.8)
    assert int(used.sum()) > 0 and not bool((used & ~top).any())


def test_ppo_against_a_loop() -> None:
    rollout = rollout_with()
    overrides = ("algorithm.whiten=false", "algorithm.lam=0.9", "algorithm.gamma=0.99")
    algorithm = make("algorithm=ppo", *overrides, "algorithm.value_coef=0.3")
    batch, out = algorithm.prepare(rollout), leaf_outputs(rollout)
    old, ref, critic = rollout.old_logps, rollout.ref_logps, rollout.values
    assert old is not None and ref is not None and critic is not None
    assert out.values is not None and batch.returns is not None
    policy = value = 0.0
    for i, n in enumerate(LENGTHS):
        rewards = [-0.04 * float(old[i, t] - ref[i, t]) for t in range(n)]
        rewards[-1] += float(rollout.rewards[i])
        advantages = loop_gae(rewards, critic[i, :n].tolist(), gamma=0.99, lam=0.9)
        assert batch.advantages[i, :n].tolist() == pytest.approx(advantages, abs=1e-12)
        for t, a in enumerate(advantages):
            target, v, v_old = a + float(critic[i, t]), float(out.values[i, t]), float(critic[i, t])
            assert float(batch.returns[i, t]) == pytest.approx(target)
            r = math.exp(float(out.logps[i, t] - old[i, t]))
            policy -= min(r * a, min(max(r, 0.8), 1.2) * a)
            clipped = min(max(v, v_old - 0.2), v_old + 0.2)
            value += 0.5 * max((v - target) ** 2, (clipped - target) ** 2)
    n = sum(LENGTHS)
    got = algorithm.loss(out, batch)
    assert float(got.metrics["loss/policy"]) == pytest.approx(policy / n)
    assert float(got.metrics["loss/value"]) == pytest.approx(0.3 * value / n)
    assert float(got.loss) == pytest.approx((policy + 0.3 * value) / n)
    assert algorithm.needs == {Column.old_logps, Column.ref_logps, Column.values}


def test_ppo_whitens_over_tokens() -> None:
    rollout = rollout_with()
    white = make("algorithm=ppo").prepare(rollout).advantages[rollout.completion_mask]
    assert float(white.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(white.std()) == pytest.approx(1.0, abs=1e-6)


def sequence_logps(out: PolicyOutput, rollout: RolloutBatch) -> Tensor:
    assert rollout.ref_logps is not None
    return (out.logps.detach() - rollout.ref_logps).masked_fill(~rollout.completion_mask, 0).sum(1)


def test_online_dpo_pairs_and_loss_by_hand() -> None:
    """Groups 3 1 2 0 and 1 1 1 1: rows 0 over 3, and a tie that is dropped."""
    rollout = rollout_with([3.0, 1.0, 2.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    algorithm = make("algorithm=online_dpo", "algorithm.beta=0.5")
    batch = algorithm.prepare(rollout)
    assert torch.equal(batch.rollout.rewards, rollout.rewards[[0, 3, 4, 7]])
    assert batch.loss_mask.any(dim=1).tolist() == [True, True, False, False]
    assert batch.num_sequences == 2 and algorithm.rows_per_unit == 2
    out = leaf_outputs(batch.rollout)
    margins = sequence_logps(out, batch.rollout)
    h = float(margins[0] - margins[1])
    got = algorithm.loss(out, batch)
    assert float(got.loss) == pytest.approx(math.log(1 + math.exp(-0.5 * h)))
    assert float(got.metrics["rewards/margins"]) == pytest.approx(0.5 * h)
    assert float(got.metrics["rewards/accuracies"]) == float(h > 0)
    kept = make("algorithm=online_dpo", "algorithm.ties=first").prepare(rollout)
    assert kept.num_sequences == 4


def test_online_dpo_minimum_gap() -> None:
    rollout = rollout_with([1.0, 0.0, 0.2, 0.3, 0.5, 0.4, 0.45, 0.5])
    assert make("algorithm=online_dpo").prepare(rollout).num_sequences == 4
    strict = make("algorithm=online_dpo", "algorithm.min_gap=0.2").prepare(rollout)
    assert strict.loss_mask.any(dim=1).tolist() == [True, True, False, False]


def test_missing_eos_penalty_changes_who_wins() -> None:
    """Rows 0 and 6 hit the limit; less 5 they are the worst of their groups."""
    rollout = rollout_with([3.0, 1.0, 2.0, 0.0, 1.0, 0.0, 2.0, 0.5])
    batch = make("algorithm=online_dpo", "algorithm.missing_eos_penalty=5").prepare(rollout)
    assert torch.equal(batch.rollout.rewards, rollout.rewards[[2, 0, 4, 6]])


def test_rloo_loss_is_one_clipped_ratio_a_row() -> None:
    rollout = rollout_with()
    algorithm = make("algorithm=rloo", "kl.beta=0.1")
    batch, out = algorithm.prepare(rollout), leaf_outputs(rollout)
    old, ref, mask = rollout.old_logps, rollout.ref_logps, rollout.completion_mask
    assert old is not None and ref is not None
    shaped = (rollout.rewards - 0.1 * (old - ref).masked_fill(~mask, 0).sum(dim=1)).tolist()
    total = 0.0
    for i, reward in enumerate(shaped):
        group = shaped[i - i % 4 : i - i % 4 + 4]
        a = reward - (sum(group) - reward) / 3
        assert float(batch.advantages[i, 0]) == pytest.approx(a)
        r = math.exp(float((out.logps - old)[i, mask[i]].sum()))
        total -= min(r * a, min(max(r, 0.8), 1.2) * a)
    assert float(algorithm.loss(out, batch).loss) == pytest.approx(total / 8)
