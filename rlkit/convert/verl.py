"""This module turns a configuration of verl (0.9) into options of rlkit.

A key that a file leaves out has verl's default, not ours, wherever it changes what is learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlkit.convert.base import Converted, Given, Writer
from rlkit.convert.verl_run import batch, data, model, optimiser, sampling, trainer
from rlkit.convert.verl_tables import (
    ACTOR,
    AGGREGATIONS,
    CORRECTION,
    DEFAULTS,
    ESTIMATORS,
    KL_TYPES,
    REASONS,
)


def convert(values: Mapping[str, Any]) -> Converted:
    """Return a configuration of verl as options of rlkit.

    Args:
        values: The keys that a file sets, nested ones joined by dots.

    Returns:
        Options, and every key without a counterpart.
    """
    # Hydra's `_target_` names a class of verl's; an interpolation repeats another key.
    own = {k: v for k, v in values.items() if k.rpartition(".")[2] != "_target_"}
    repeated = {k for k, v in own.items() if isinstance(v, str) and "${" in v}
    set_keys = {k: v for k, v in own.items() if v is not None and k not in repeated}
    write = Writer(Given(set_keys, DEFAULTS))
    write.result.same.extend(k for k in values if k not in set_keys)
    _algorithm(write)
    _ratio(write)
    _kl(write)
    _loss(write)
    _correction(write)
    for part in (batch, data, optimiser, model, sampling, trainer):
        part(write)
    return write.finish(REASONS)


def _algorithm(write: Writer) -> None:
    """Convert the advantage estimator and its options."""
    given, key = write.given, "algorithm.adv_estimator"
    name = ESTIMATORS.get(given(key), "grpo")
    write.option(f"algorithm={name}", key)
    if given(key) not in ESTIMATORS:
        write.lose(key, f"rlkit has {', '.join(ESTIMATORS)}")
    if name == "ppo":
        for source, option in (
            ("algorithm.gamma", "algorithm.gamma"),
            ("algorithm.lam", "algorithm.lam"),
            ("critic.optim.lr", "algorithm.value_lr"),
            ("critic.cliprange_value", "algorithm.value_clip"),
            ("trainer.critic_warmup", "algorithm.value_pretrain_steps"),
        ):
            write.set(option, given(source), source)
    elif name == "grpo":
        scaled = given("algorithm.norm_adv_by_std_in_grpo")
        scale = "group_std" if scaled else "none"
        write.set("algorithm.advantage.scale", scale, "algorithm.norm_adv_by_std_in_grpo")
        write.set("algorithm.advantage.eps", 1e-6, key)
    filtered = "algorithm.filter_groups.enable"
    if given(filtered):
        write.set("algorithm.group_filter", "resample", filtered)
    else:
        write.same(filtered)


def _ratio(write: Writer) -> None:
    """Convert the policy loss: the ratio and its clip."""
    given, key = write.given, f"{ACTOR}policy_loss.loss_mode"
    low, high, both = (f"{ACTOR}clip_ratio{end}" for end in ("_low", "_high", ""))
    names = {
        "vanilla": "token",
        "gspo": "gspo",
        "cispo": "cispo",
        "geo_mean": "gmpo",
        "sapo": "sapo",
    }
    mode = given(key)
    if mode not in names:
        write.lose(key, f"rlkit has {', '.join(names)}")
    if mode == "vanilla" and given(f"{ACTOR}clip_ratio_c") > 1e6:
        write.same(f"{ACTOR}clip_ratio_c")
    dual = mode == "vanilla" and given(f"{ACTOR}clip_ratio_c") <= 1e6
    write.option(f"ratio={'dual_clip' if dual else names.get(mode, 'token')}", key)
    if mode == "sapo":
        write.set("ratio.tau_positive", given(f"{ACTOR}tau_pos"), f"{ACTOR}tau_pos")
        write.set("ratio.tau_negative", given(f"{ACTOR}tau_neg"), f"{ACTOR}tau_neg")
        return
    write.set("ratio.clip_low", given(low), low)
    write.set("ratio.clip_high", given(high), high)
    if dual:
        write.set("ratio.dual", given(f"{ACTOR}clip_ratio_c"), f"{ACTOR}clip_ratio_c")
    if given.has(both) and given(both) == given(low) == given(high):
        write.same(both)


def _kl(write: Writer) -> None:
    """Convert the KL term: in the loss, in the reward, or none."""
    given = write.given
    in_loss, in_reward = f"{ACTOR}use_kl_loss", "algorithm.use_kl_in_reward"
    if given(in_loss):
        coefficient, kind = f"{ACTOR}kl_loss_coef", f"{ACTOR}kl_loss_type"
    elif given(in_reward):
        coefficient, kind = "algorithm.kl_ctrl.kl_coef", "algorithm.kl_penalty"
    else:
        write.option("kl=none", in_loss, in_reward)
        unused = ("algorithm.kl_ctrl.kl_coef", "algorithm.kl_ctrl.type", "algorithm.kl_penalty")
        write.same(*unused, f"{ACTOR}kl_loss_coef", f"{ACTOR}kl_loss_type")
        return
    estimator, plus = str(given(kind)).removesuffix("+"), str(given(kind)).endswith("+")
    if estimator not in KL_TYPES:
        write.lose(kind, f"rlkit has {', '.join(KL_TYPES)}")
    placed = "" if given(in_loss) else "_reward"
    straight = "_straight" if plus and given(in_loss) else ""
    name = KL_TYPES.get(estimator, "k3")
    # The one straight-through option is that of k3; the others are the same by values.
    option = f"reverse_{name}{placed}" if name != "k3" else f"reverse_k3{placed}{straight}"
    write.option(f"kl={option}", in_loss, in_reward, kind)
    if straight and name == "k1":
        write.set("kl.gradient", "straight_through", kind)
    write.set("kl.beta", given(coefficient), coefficient)
    if given(in_loss) and given(in_reward):
        write.lose(in_reward, "rlkit has one KL term: the one in the loss is kept")
    if given("algorithm.kl_ctrl.type") == "adaptive":
        write.lose("algorithm.kl_ctrl.type", "rlkit's coefficient is constant")
    else:
        write.same("algorithm.kl_ctrl.type")


def _loss(write: Writer) -> None:
    """Convert how tokens become one number, and the entropy bonus."""
    given, key = write.given, f"{ACTOR}loss_agg_mode"
    if given(key) in AGGREGATIONS:
        write.set("algorithm.aggregation", AGGREGATIONS[given(key)], key)
    else:
        write.lose(key, f"rlkit has {', '.join(AGGREGATIONS)}")
    write.set("algorithm.entropy_coef", given(f"{ACTOR}entropy_coeff"), f"{ACTOR}entropy_coeff")


def _correction(write: Writer) -> None:
    """Convert the weights against the sampler."""
    given = write.given
    key, bound = f"{CORRECTION}rollout_is", f"{CORRECTION}rollout_is_threshold"
    level, threshold = given(key), given(bound)
    if level not in ("token", "sequence"):
        write.option("correction=none", key)
        return
    if isinstance(threshold, str) and "_" in threshold:
        # IcePop: weights outside of the two bounds are dropped.
        low, high = (float(part) for part in threshold.split("_"))
        write.option(f"correction={level}_mask", key, bound)
        write.set("correction.low", low, bound)
        write.set("correction.high", high, bound)
    else:
        write.option(f"correction={level}_tis", key, bound)
        write.set("correction.high", float(threshold), bound)
