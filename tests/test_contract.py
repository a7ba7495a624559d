"""What every algorithm must do, for the registry, every preset and every value of every axis."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from oracles import (
    as_outputs,
    filled,
    gradients,
    in_turns,
    leaf_outputs,
    options,
    random_rollout,
    setting,
)
from torch import Tensor

from rlkit.algorithms import ALGORITHMS, build
from rlkit.algorithms.grpo import GRPOConfig
from rlkit.algorithms.objective.advantage import Baseline, TurnCredit
from rlkit.oracle.compose import composed
from rlkit.types import (
    Algorithm,
    LossOutput,
    PolicyOutput,
    RolloutBatch,
    TrainBatch,
)

TOLERANCE = 1e-10
GROUP = 4
LENGTHS = (6, 1, 3, 2, 4, 5, 6, 2, 3, 3, 1, 6)
CASES = (
    [(f"algorithm={name}",) for name in options("algorithm")]
    + [(f"kl={name}",) for name in options("kl")]
    + [(f"ratio={name}",) for name in options("ratio")]
    + [(f"correction={name}",) for name in options("correction")]
    + [("algorithm=ppo", "kl=reverse_k3"), ("algorithm=rloo", "algorithm.advantage.scale=whiten")]
    + [("algorithm.entropy_coef=0.01",), ("algorithm.mask_truncated=true",)]
    + [("algorithm.group_filter=mask",), ("algorithm.advantage.combine=normalize_each",)]
    + [("algorithm=online_dpo", f"algorithm.pairs={rule}") for rule in ("ranked", "neighbours")]
    + [("algorithm=online_dpo", f"algorithm.loss={loss}") for loss in ("ipo", "hinge")]
)
EPISODE_CASES: list[tuple[str, ...]] = [
    (
        f"algorithm={name}",
        f"algorithm.advantage.turns={turns}",
        "ratio=token",
        "algorithm.aggregation=token_mean",
    )
    for name in ("grpo", "rloo")
    for turns in TurnCredit
    if turns is not TurnCredit.trajectory
]
SPLITTABLE = [case for case in CASES if case != ("algorithm=bnpo",)]
every_case = pytest.mark.parametrize("case", CASES, ids=",".join)


def algorithm_of(
    case: tuple[str, ...], *, updates: int = 1, microbatched: bool = False
) -> Algorithm:
    objective = composed(*case, f"algorithm.group_size={GROUP}")
    if objective.ratio.old == "current" and not objective.ratio.detach:
        updates = 1
    return build(objective, setting(group_size=GROUP, updates=updates, microbatched=microbatched))


def outputs_for(batch: TrainBatch) -> PolicyOutput:
    return leaf_outputs(batch.rollout)


def rows_of(out: PolicyOutput, index: Tensor) -> PolicyOutput:
    return as_outputs([x[index] for x in filled(out)])


def run(algorithm: Algorithm, rollout: RolloutBatch) -> tuple[LossOutput, list[Tensor]]:
    """Loss and gradients of the whole batch, for outputs that depend on the prepared rows only."""
    batch = algorithm.prepare(rollout)
    out = outputs_for(batch)
    result = algorithm.loss(out, batch)
    if result.loss.requires_grad:
        result.loss.backward()  # type: ignore[no-untyped-call]
    return result, gradients(out)


def close(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE))


def random_split(num_units: int, generator: torch.Generator) -> list[Tensor]:
    order = torch.randperm(num_units, generator=generator)
    sizes: list[int] = []
    while sum(sizes) < num_units:
        size = int(torch.randint(1, num_units + 1, (1,), generator=generator))
        sizes.append(min(size, num_units - sum(sizes)))
    return list(torch.split(order, sizes))


def check_splits(algorithm: Algorithm, rollout: RolloutBatch, *, num_splits: int) -> None:
    batch = algorithm.prepare(rollout)
    unit = algorithm.rows_per_unit
    whole = outputs_for(batch)
    full = algorithm.loss(whole, batch)
    full.loss.backward()  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(5)
    for _ in range(num_splits):
        out = outputs_for(batch)
        losses: list[Tensor] = []
        metrics: dict[str, Tensor] = {name: torch.tensor(0.0) for name in full.metrics}
        for units in random_split(len(batch) // unit, generator):
            index = (units[:, None] * unit + torch.arange(unit)).flatten()
            part = algorithm.loss(rows_of(out, index), batch.rows(index))
            assert part.metrics.keys() == full.metrics.keys()
            metrics = {name: value + part.metrics[name] for name, value in metrics.items()}
            losses.append(part.loss)
        total = torch.stack(losses).sum()
        total.backward()  # type: ignore[no-untyped-call]
        assert close(total, full.loss)
        assert all(close(a, b) for a, b in zip(gradients(out), gradients(whole), strict=True))
        for name, value in metrics.items():
            assert torch.allclose(value.double(), full.metrics[name].double(), atol=1e-6), name


@pytest.mark.parametrize("name", [entry.name for entry in ALGORITHMS])
def test_any_of_500_random_splits_adds_up(name: str) -> None:
    algorithm = algorithm_of((f"algorithm={name}",), updates=2, microbatched=True)
    rollout = random_rollout(lengths=LENGTHS, group_size=GROUP)
    check_splits(algorithm, rollout, num_splits=500 // len(ALGORITHMS))


@pytest.mark.parametrize("case", SPLITTABLE, ids=",".join)
def test_every_configuration_adds_up(case: tuple[str, ...]) -> None:
    algorithm = algorithm_of(case, updates=2, microbatched=True)
    check_splits(algorithm, random_rollout(lengths=LENGTHS, group_size=GROUP), num_splits=2)


@every_case
@pytest.mark.parametrize("poison", [1e4, float("nan")])
def test_padding_never_matters(case: tuple[str, ...], poison: float) -> None:
    check_poison(case, random_rollout(lengths=LENGTHS, group_size=GROUP), poison)


@pytest.mark.parametrize("case", [*CASES, *EPISODE_CASES], ids=",".join)
@pytest.mark.parametrize("poison", [1e4, float("nan")])
def test_tokens_of_an_environment_are_context_and_nothing_else(
    case: tuple[str, ...], poison: float
) -> None:
    """Poison between turns: no loss, no metric and no gradient of any algorithm changes."""
    rollout = in_turns(random_rollout(lengths=LENGTHS, group_size=GROUP))
    assert rollout.spliced is not None and int(rollout.spliced.sum()) > len(rollout) // 2
    check_poison(case, rollout, poison)


def check_poison(case: tuple[str, ...], clean: RolloutBatch, poison: float) -> None:
    """Whatever stands outside `completion_mask` reaches neither loss nor metric nor gradient."""
    algorithm = algorithm_of(case, updates=2)
    padding = ~clean.completion_mask
    names = ["sampling_logps", "old_logps", "ref_logps", "values"]
    names += ["turn_rewards"] if clean.turn_rewards is not None else []
    columns = {name: getattr(clean, name).masked_fill(padding, poison) for name in names}
    if clean.turn_ids is not None:
        columns["turn_ids"] = clean.turn_ids.masked_fill(padding, 99)
    want, want_gradients = run(algorithm, clean)
    batch = algorithm.prepare(replace(clean, **columns))
    padding = ~batch.rollout.completion_mask
    leaves = [x.detach().masked_fill(padding, poison) for x in filled(outputs_for(batch))]
    out = as_outputs([x.requires_grad_() for x in leaves])
    got = algorithm.loss(out, batch)
    if got.loss.requires_grad:
        got.loss.backward()  # type: ignore[no-untyped-call]
    assert close(got.loss, want.loss)
    assert all(close(a, b) for a, b in zip(gradients(out), want_gradients, strict=True))
    assert all(close(got.metrics[name], value) for name, value in want.metrics.items())


@every_case
def test_order_of_groups_does_not_matter(case: tuple[str, ...]) -> None:
    algorithm = algorithm_of(case, updates=2)
    rollout = random_rollout(lengths=LENGTHS, group_size=GROUP)
    order = torch.tensor([2, 0, 1])
    index = (order[:, None] * GROUP + torch.arange(GROUP)).flatten()
    moved = replace(rollout.rows(index), group_ids=rollout.group_ids)
    batch, moved_batch = algorithm.prepare(rollout), algorithm.prepare(moved)
    per_group = len(batch) // 3
    rows = (order[:, None] * per_group + torch.arange(per_group)).flatten()
    assert close(moved_batch.advantages, batch.advantages[rows])
    assert torch.equal(moved_batch.loss_mask, batch.loss_mask[rows])
    out = outputs_for(batch)
    a = algorithm.loss(out, batch)
    b = algorithm.loss(rows_of(out, rows), moved_batch)
    assert close(a.loss, b.loss)


@every_case
def test_inputs_are_not_modified_and_get_no_gradient(case: tuple[str, ...]) -> None:
    algorithm = algorithm_of(case, updates=2)
    rollout = in_turns(random_rollout(lengths=LENGTHS, group_size=GROUP))
    rollout = replace(
        rollout,
        restarts=rollout.spliced,
        **{
            name: getattr(rollout, name).requires_grad_()
            for name in ("sampling_logps", "old_logps", "ref_logps", "values", "rewards")
        },
    )
    before = copy.deepcopy({f.name: getattr(rollout, f.name) for f in fields(rollout)})
    with torch.no_grad():
        batch = algorithm.prepare(rollout)
    batch = replace(batch, advantages=batch.advantages.requires_grad_())
    out = outputs_for(batch)
    copies = [x.detach().clone() for x in filled(out)]
    result = algorithm.loss(out, batch)
    if result.loss.requires_grad:
        result.loss.backward()  # type: ignore[no-untyped-call]
    for name, value in before.items():
        now = getattr(rollout, name)
        assert torch.equal(now, value), name
        assert now.grad is None, name
    assert batch.advantages.grad is None
    assert all(torch.equal(a, b) for a, b in zip(filled(out), copies, strict=True))
    assert not any(value.requires_grad for value in result.metrics.values())


@every_case
def test_old_equal_to_new_is_the_on_policy_gradient(case: tuple[str, ...]) -> None:
    """Stored old logps that equal the current ones: two updates a batch give what one gives."""
    rollout = random_rollout(lengths=LENGTHS, group_size=GROUP)
    stored, current = (algorithm_of(case, updates=u) for u in (2, 1))
    batch = stored.prepare(rollout)
    assert batch.rollout.old_logps is not None
    results = []
    for algorithm in (stored, current):
        same = batch.rollout.old_logps.clone().requires_grad_()
        out = outputs_for(batch)._replace(logps=same)
        loss = algorithm.loss(out, batch).loss
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        results.append([loss.detach(), *gradients(out)])
    assert all(close(a, b) for a, b in zip(*results, strict=True))


def has_group_baseline(case: tuple[str, ...]) -> bool:
    cfg = composed(*case, f"algorithm.group_size={GROUP}").algorithm
    grouped = (Baseline.group_mean, Baseline.leave_one_out)
    return isinstance(cfg, GRPOConfig) and cfg.advantage.baseline in grouped


def zero_rewards(rollout: RolloutBatch) -> RolloutBatch:
    """All rewards 0.1: not a binary fraction, so a naive mean differs from it by rounding."""
    tenth = torch.full_like(rollout.rewards, 0.1)
    components = torch.full_like(rollout.reward_components, 0.1)
    return replace(rollout, rewards=tenth, reward_components=components)


def one_scored(rollout: RolloutBatch) -> RolloutBatch:
    """Groups of which one row has a reward."""
    lonely = torch.arange(len(rollout)) % GROUP != 1
    return replace(
        rollout,
        rewards=rollout.rewards.masked_fill(lonely, torch.nan),
        reward_components=rollout.reward_components.masked_fill(lonely[:, None], torch.nan),
    )


def none_scored(rollout: RolloutBatch) -> RolloutBatch:
    return replace(
        rollout,
        rewards=torch.full_like(rollout.rewards, torch.nan),
        reward_components=torch.full_like(rollout.reward_components, torch.nan),
    )


def all_truncated(rollout: RolloutBatch) -> RolloutBatch:
    return replace(rollout, truncated=torch.ones_like(rollout.truncated))


def all_empty(rollout: RolloutBatch) -> RolloutBatch:
    """Made from completions without any token."""
    assert not bool(rollout.completion_mask.any())
    return rollout


DEGENERATE = [zero_rewards, one_scored, none_scored, all_truncated, all_empty]


@every_case
@pytest.mark.parametrize("degrade", DEGENERATE, ids=lambda f: f.__name__)
def test_degenerate_batches_are_finite(
    case: tuple[str, ...], degrade: Callable[[RolloutBatch], RolloutBatch]
) -> None:
    algorithm = algorithm_of(case, updates=2)
    lengths = (0,) * 12 if degrade is all_empty else (0, 1, 3, 0, 0, 0, 0, 0, 6, 0, 2, 1)
    rollout = degrade(random_rollout(lengths=lengths, group_size=GROUP))
    batch = algorithm.prepare(rollout)
    assert batch.advantages.isfinite().all()
    assert torch.equal(batch.advantages[~batch.loss_mask], batch.advantages[~batch.loss_mask] * 0)
    result, grads = run(algorithm, rollout)
    assert result.loss.isfinite()
    assert all(g.isfinite().all() for g in grads)
    assert all(value.isfinite() for value in result.metrics.values())
    kl_in_advantage = composed(*case).kl.placement != "loss"
    if (
        degrade not in (all_truncated, all_empty)
        and has_group_baseline(case)
        and not kl_in_advantage
    ):
        assert torch.equal(batch.advantages, torch.zeros_like(batch.advantages))


@every_case
@pytest.mark.parametrize("sizes", [(1, 2, 4), (1, 1, 1), (3, 0, 2), (0, 0, 1)], ids=str)
def test_groups_may_have_lost_samples(case: tuple[str, ...], sizes: tuple[int, ...]) -> None:
    """Samples without a reward never reach an algorithm: a group holds 0, 1, 2, ... of its four."""
    algorithm = algorithm_of(case, updates=2)
    whole = random_rollout(lengths=LENGTHS, group_size=GROUP)
    kept = torch.tensor([g * GROUP + i for g, size in enumerate(sizes) for i in range(size)])
    rollout = whole.rows(kept)
    rollout = replace(rollout, group_ids=torch.unique(rollout.group_ids, return_inverse=True)[1])
    batch = algorithm.prepare(rollout)
    assert len(batch) > 0 and len(batch) % algorithm.rows_per_unit == 0
    assert batch.advantages.isfinite().all()
    result, grads = run(algorithm, rollout)
    assert result.loss.isfinite()
    assert all(g.isfinite().all() for g in grads)
    assert all(value.isfinite() for value in result.metrics.values())
    if has_group_baseline(case) and composed(*case).kl.placement == "loss":
        alone = torch.tensor([size for size in sizes for _ in range(size)]) == 1
        lonely = batch.advantages[alone]  # nothing to differ from
        assert torch.allclose(lonely, torch.zeros_like(lonely), rtol=0.0, atol=1e-12)
    if algorithm.rows_per_unit == 2 and max(sizes) == 1:
        assert not any(g.any() for g in grads), "a sample alone makes no pair"


@every_case
def test_gradient_only_where_the_mask_is(case: tuple[str, ...]) -> None:
    algorithm = algorithm_of(case, updates=2)
    rollout = random_rollout(lengths=LENGTHS, group_size=GROUP)
    batch = algorithm.prepare(rollout)
    _, grads = run(algorithm, rollout)
    for gradient in grads:
        assert float(gradient[~batch.loss_mask].abs().sum()) == 0.0
    assert float(grads[0].abs().sum()) > 0.0


@every_case
def test_idle_rows_have_no_gradient(case: tuple[str, ...]) -> None:
    """Every second group has equal rewards; what is called idle must leave no trace."""
    algorithm = algorithm_of(case, updates=2)
    rollout = random_rollout(lengths=LENGTHS, group_size=GROUP)
    equal = torch.arange(len(rollout)) // GROUP % 2 == 0
    components = rollout.reward_components.masked_fill(equal[:, None], 0.5)
    rewards = rollout.rewards.masked_fill(equal, 0.5)
    rollout = replace(rollout, rewards=rewards, reward_components=components)
    if algorithm.idle is None:
        return
    idle = algorithm.idle(algorithm.prepare(rollout))
    assert idle.shape == (len(rollout),)
    for gradient in run(algorithm, rollout)[1]:
        assert float(gradient[idle].abs().sum()) == 0.0


@every_case
def test_float32_agrees_with_float64(case: tuple[str, ...]) -> None:
    algorithm = algorithm_of(case, updates=2)
    rollout = random_rollout(lengths=LENGTHS, group_size=GROUP)
    single = replace(
        rollout,
        **{
            f.name: getattr(rollout, f.name).float()
            for f in fields(rollout)
            if getattr(getattr(rollout, f.name), "dtype", None) == torch.float64
        },
    )
    want, _ = run(algorithm, rollout)
    batch = algorithm.prepare(single)
    out = as_outputs([x.detach().float() for x in filled(outputs_for(algorithm.prepare(rollout)))])
    got = algorithm.loss(out, batch)
    assert got.loss.dtype == torch.float32
    assert torch.allclose(got.loss.double(), want.loss, atol=1e-5)


@every_case
def test_a_minibatch_is_a_batch_of_its_own(case: tuple[str, ...]) -> None:
    """Half of the units with denominators counted anew: the loss of a smaller batch."""
    algorithm = algorithm_of(case, updates=2)
    batch = algorithm.prepare(random_rollout(lengths=LENGTHS, group_size=GROUP))
    index = torch.arange(len(batch) // 2)
    mini = batch.minibatch(index)
    assert mini.num_tokens == int(batch.loss_mask[index].sum())
    mask = batch.loss_mask[index].tolist()
    num_sequences = max(sum(any(row) for row in mask), 1)
    alone = replace(
        batch.rows(index), num_tokens=max(sum(map(sum, mask)), 1), num_sequences=num_sequences
    )
    out = rows_of(outputs_for(batch), index)
    assert close(algorithm.loss(out, mini).loss, algorithm.loss(out, alone).loss)


def test_the_registry_is_what_hydra_offers() -> None:
    """Every algorithm has a YAML file of its name, and every file builds."""
    assert {entry.name for entry in ALGORITHMS} <= set(options("algorithm"))
    types = {entry.config for entry in ALGORITHMS}
    for name in options("algorithm"):
        assert type(composed(f"algorithm={name}").algorithm) in types
