"""Every impossible or ineffective setting is refused with a message that says what to set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hydra.errors import HydraException
from oracles import setting

from rlkit.algorithms import AlgorithmConfig, build
from rlkit.oracle.compose import composed
from rlkit.types import OutputSpec, Setting

Case = tuple[str, str]

INVALID: list[Case] = [
    ("kl.beta=-0.1", "kl.beta must be >= 0 and finite, got -0.1"),
    ("kl.beta=nan", "kl.beta must be >= 0 and finite, got nan"),
    ("kl=none kl.gradient=score_function", "kl.gradient has no effect with kl.direction=none"),
    ("kl=none kl.placement=reward", "kl.placement has no effect with kl.direction=none"),
    ("kl=none kl.horizon=sequence", "kl.horizon has no effect with kl.direction=none"),
    ("kl=none kl.weight=old", "kl.weight has no effect with kl.direction=none"),
    ("kl=none kl.beta=0.1", "kl.beta has no effect with kl.direction=none, got 0.1"),
    ("kl=none kl.estimator=k1", "kl.estimator has no effect with kl.direction=none, got k1"),
    ("ratio=no_clip ratio.clip_high=0.3", "have no effect with ratio.clip=none, got 0.2 and 0.3"),
    ("ratio=cispo ratio.clip=none", "have no effect with ratio.clip=none, got 1.0 and 4.0"),
    ("ratio.tau_positive=2", "have no effect with ratio.clip=ppo; set ratio=sapo"),
    ("correction.high=3", "no effect with correction.mode=none, got token, 0.0 and 3.0"),
    ("kl.top_k=5", "kl.top_k must be set if and only if kl.estimator=top_k"),
    ("kl.estimator=top_k", "kl.top_k must be set if and only if kl.estimator=top_k"),
    ("kl=reverse_top_k kl.top_k=0", "kl.top_k must be >= 1, got 0"),
    ("kl.direction=forward kl.estimator=k2", "kl.estimator=k2 has no forward form; use k1, k3"),
    ("kl.estimator=unsloth_forward", "estimates a forward KL; set kl.direction=forward"),
    ("kl=reverse_k1_reward kl.gradient=straight_through", "needs kl.placement=loss"),
    ("kl=reverse_k1_advantage kl.weight=old", "kl.weight=old needs kl.placement=loss"),
    ("kl=reverse_k1_reward kl.horizon=sequence", "kl.horizon=sequence needs kl.placement=loss"),
    ("kl=reverse_exact kl.placement=reward", "use kl.estimator=k1 there"),
    ("kl=forward_exact kl.gradient=score_function", "kl.gradient must be pathwise with"),
    ("kl=reverse_exact kl.weight=old", "kl.weight must be none with kl.estimator=exact"),
    ("kl=unsloth_forward kl.gradient=score_function", "is kept as published"),
    ("ratio.clip_low=-0.1", "ratio.clip_low must be >= 0 and finite, got -0.1"),
    ("ratio.clip_low=1.5", "ratio.clip_low must be <= 1 with ratio.clip=ppo, got 1.5"),
    ("ratio.clip_high=inf", "ratio.clip_high must be >= 0 and finite, got inf"),
    ("ratio.delta=1.1", "ratio.delta must be > 1.2, got 1.1"),
    ("ratio.dual=1.0", "ratio.dual must be > 1.0, got 1.0"),
    ("ratio=cispo ratio.delta=4", "ratio.delta needs ratio.clip=ppo, got ratio.clip=cispo"),
    ("ratio=no_clip ratio.dual=3", "ratio.dual needs ratio.clip=ppo, got ratio.clip=none"),
    ("ratio=sapo ratio.tau_positive=0", "ratio.tau_positive must be > 0, got 0.0"),
    ("ratio=gmpo ratio.level=token", "ratio.clip=gmpo needs ratio.level=sequence_mean"),
    ("ratio.detach=false ratio.old=stored", "ratio.detach=false needs ratio.old=current"),
    ("ratio=cispo ratio.detach=false", "has no effect with ratio.clip=cispo"),
    ("ratio.old=one", "ratio.old=one is a probability, not a ratio"),
    ("correction=token_tis correction.low=-1", "correction.low must be >= 0 and finite, got -1.0"),
    ("correction=token_mask correction.high=0.5", "correction.high must be > correction.low=0.5"),
    ("algorithm.group_size=0", "algorithm.group_size must be >= 1, got 0"),
    ("algorithm.overlong_fraction=1.5", "algorithm.overlong_fraction must be in [0, 1], got 1.5"),
    ("algorithm.overlong_scale=-1", "algorithm.overlong_scale must be >= 0, got -1.0"),
    ("algorithm.entropy_coef=inf", "algorithm.entropy_coef must be finite, got inf"),
    ("algorithm.entropy_fraction=0", "algorithm.entropy_fraction must be in (0, 1], got 0.0"),
    ("algorithm.advantage.eps=-1", "algorithm.advantage.eps must be >= 0, got -1.0"),
    (
        "algorithm.advantage.combine=normalize_each algorithm.advantage.scale=none",
        "set baseline=group_mean and scale=group_std",
    ),
    ("algorithm=ppo algorithm.gamma=0", "algorithm.gamma must be in (0, 1], got 0.0"),
    ("algorithm=ppo algorithm.lam=1.1", "algorithm.lam must be in [0, 1], got 1.1"),
    ("algorithm=ppo algorithm.value_coef=0", "algorithm.value_coef must be > 0, got 0.0"),
    ("algorithm=ppo algorithm.value_lr=0", "algorithm.value_lr must be > 0, got 0.0"),
    ("algorithm=ppo algorithm.value_clip=0", "algorithm.value_clip must be > 0 or null, got 0.0"),
    ("algorithm=ppo algorithm.value_pretrain_steps=-1", "must be >= 0, got -1"),
    ("algorithm=online_dpo algorithm.beta=0", "algorithm.beta must be > 0, got 0.0"),
    ("algorithm=online_dpo algorithm.label_smoothing=0.5", "must be in [0, 0.5), got 0.5"),
    (
        "algorithm=online_dpo algorithm.label_smoothing=0.1 algorithm.loss=ipo",
        "algorithm.label_smoothing has no effect with algorithm.loss=ipo",
    ),
    (
        "algorithm=online_dpo algorithm.labels=wins algorithm.loss=hinge",
        "algorithm.labels must be hard with algorithm.loss=hinge, got wins",
    ),
    ("algorithm=online_dpo algorithm.min_gap=-1", "algorithm.min_gap must be >= 0, got -1.0"),
    ("algorithm=online_dpo algorithm.missing_eos_penalty=-1", "missing_eos_penalty must be >= 0"),
    ("algorithm=xpo algorithm.xpo_alpha=-1", "algorithm.xpo_alpha must be >= 0, got -1.0"),
    ("algorithm=xpo algorithm.xpo_max_weight=0", "algorithm.xpo_max_weight must be > 0, got 0.0"),
]


@pytest.mark.parametrize(("overrides", "message"), INVALID)
def test_invalid_values_are_refused_when_the_config_is_made(overrides: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        composed(*overrides.split())
    assert message in str(caught.value)


def run_of(**changes: int | bool) -> Callable[[int], Setting]:
    return lambda group_size: setting(group_size=group_size)._replace(**changes)  # type: ignore[arg-type]


PLAIN = run_of()
IMPOSSIBLE: list[tuple[str, Callable[[int], Setting], str]] = [
    ("algorithm=bnpo", run_of(microbatched=True), "set algorithm.aggregation=token_mean"),
    ("algorithm.entropy_fraction=0.2", run_of(microbatched=True), "set memory=unsplit"),
    ("algorithm.group_size=4", run_of(group_size=8), "must be the run's group size 8, got 4"),
    ("algorithm.group_size=1", PLAIN, "use baseline=batch_mean, scale=whiten"),
    ("algorithm=rloo algorithm.group_size=1", PLAIN, "algorithm.group_size must be >= 2"),
    ("algorithm=dapo algorithm.group_size=1", PLAIN, "set group_filter=none"),
    (
        "ratio.detach=false",
        run_of(updates_per_batch=2),
        "ratio.detach=false needs ratio.old=current",
    ),
    ("ratio.old=sampler correction=token_tis", PLAIN, "set correction=none or ratio.old=auto"),
    ("ratio=sequence algorithm.aggregation=token_mean", PLAIN, "aggregation=sequence_mean"),
    ("ratio=probability kl=reverse_k3_corrected", PLAIN, "kl.weight=old needs an old policy"),
    (
        "algorithm.advantage.combine=normalize_each kl=reverse_k1_reward",
        PLAIN,
        "set kl.placement=loss or advantage",
    ),
    (
        "algorithm.advantage.combine=normalize_each algorithm.overlong_fraction=0.2",
        PLAIN,
        "algorithm.overlong_fraction=0",
    ),
    ("algorithm=rloo algorithm.advantage.baseline=none", PLAIN, "use algorithm=grpo for other"),
    ("algorithm=online_dpo kl=reverse_k3", PLAIN, "algorithm.beta is its KL strength"),
    ("algorithm=online_dpo ratio=cispo", PLAIN, "set ratio=token"),
    ("algorithm=online_dpo correction=token_tis", PLAIN, "set correction=none"),
    ("algorithm=online_dpo algorithm.group_size=1", PLAIN, "algorithm.group_size must be >= 2"),
    (
        "algorithm=online_dpo algorithm.group_filter=mask algorithm.ties=first",
        PLAIN,
        "set ties=drop",
    ),
    ("algorithm=xpo algorithm.pairs=best_worst", PLAIN, "algorithm.pairs=neighbours"),
]


@pytest.mark.parametrize(("overrides", "run", "message"), IMPOSSIBLE)
def test_impossible_combinations_are_refused_when_built(
    overrides: str, run: Callable[[int], Setting], message: str
) -> None:
    objective = composed(*overrides.split())
    with pytest.raises(ValueError) as caught:
        build(objective, run(objective.algorithm.group_size))
    assert message in str(caught.value)


def test_unknown_algorithms_are_named() -> None:
    objective = replace(composed(), algorithm=AlgorithmConfig())
    with pytest.raises(ValueError, match=r"must be one of GRPOConfig, .*, got AlgorithmConfig"):
        build(objective, setting(group_size=8))


def test_misspelt_keys_and_values_are_hydras() -> None:
    with pytest.raises(HydraException, match="clip_lo"):
        composed("ratio.clip_lo=0.1")
    with pytest.raises(HydraException, match="direction"):
        composed("kl.direction=foward")


def test_user_overrides_win_over_presets() -> None:
    preset = composed("algorithm=dapo")
    assert (preset.kl.direction, preset.ratio.clip_high) == ("none", 0.28)
    mine = composed("algorithm=dapo", "kl=reverse_k2", "ratio=token", "ratio.clip_low=0.1")
    assert (mine.kl.estimator, mine.ratio.clip_low, mine.ratio.clip_high) == ("k2", 0.1, 0.2)
    assert mine.algorithm == preset.algorithm


def test_the_loss_of_unsloth_2025_is_one_preset() -> None:
    unsloth = composed("algorithm=unsloth_2025")
    kl, ratio = unsloth.kl, unsloth.ratio
    assert (kl.estimator, kl.gradient, kl.beta) == ("k3", "pathwise", 0.04)
    assert (ratio.old, ratio.clip, ratio.detach) == ("current", "none", True)


def test_warmup_is_the_critic_alone() -> None:
    steps = "algorithm.value_pretrain_steps=3"
    algorithm = build(composed("algorithm=ppo", steps), setting(group_size=8))
    first = algorithm.warmup
    assert first is not None and first.num_steps == 3
    for step in range(3):
        assert algorithm.at(step).loss is first.loss
        assert algorithm.at(step).outputs == OutputSpec(values=True)
        assert algorithm.at(step).prepare is algorithm.prepare
    assert algorithm.at(3) is algorithm
    assert build(composed("algorithm=ppo"), setting(group_size=8)).warmup is None
    assert build(composed(), setting(group_size=8)).warmup is None


def test_only_an_algorithm_with_a_critic_has_a_rate_for_it() -> None:
    rate = "algorithm.value_lr=0.003"
    assert build(composed("algorithm=ppo", rate), setting(group_size=8)).critic_rate == 0.003
    assert build(composed(), setting(group_size=8)).critic_rate is None
