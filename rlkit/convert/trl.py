"""This module turns TRL's `GRPOConfig` (1.16) into options of rlkit.

A key that a file leaves out has TRL's default, not ours, wherever it changes what is learnt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlkit.convert.base import Converted, Given, Writer
from rlkit.convert.trl_run import batch, files, model, optimiser
from rlkit.convert.trl_tables import AGGREGATIONS, CORRECTIONS, DEFAULTS, REASONS, SCALES


def convert(values: Mapping[str, Any]) -> Converted:
    """Return a `GRPOConfig` as options of rlkit.

    Args:
        values: The keys that a file sets, under TRL's names; those of `LoraConfig` begin with
            `peft.`.

    Returns:
        Options, and every key without a counterpart.
    """
    given = Given({k: v for k, v in values.items() if v is not None}, DEFAULTS)
    write = Writer(given)
    write.result.same.extend(k for k, v in values.items() if v is None)  # TRL's "not set"
    write.option("algorithm=grpo")
    _loss(write)
    _ratio(write)
    _kl(write)
    _advantage(write)
    _sampling(write)
    batch(write)
    optimiser(write)
    model(write)
    files(write)
    return write.finish(REASONS)


def _loss(write: Writer) -> None:
    """Convert how tokens become one number."""
    given, kind = write.given, write.given("loss_type")
    if kind in AGGREGATIONS:
        write.set("algorithm.aggregation", AGGREGATIONS[kind], "loss_type")
    else:
        write.lose("loss_type", f"rlkit has {', '.join(sorted(AGGREGATIONS))}")
    if kind == "bnpo":
        write.set("memory.tokens_per_microbatch", 0, "loss_type")
    elif given("top_entropy_quantile") < 1.0:
        write.set("memory.tokens_per_microbatch", 0, "top_entropy_quantile")
    if kind in ("grpo", "sapo"):
        write.note("rows without a kept token do not count in rlkit's mean over rows")
    write.set(
        "algorithm.mask_truncated",
        given("mask_truncated_completions"),
        "mask_truncated_completions",
    )
    write.set("algorithm.entropy_coef", given("entropy_coef"), "entropy_coef")
    write.set("algorithm.entropy_fraction", given("top_entropy_quantile"), "top_entropy_quantile")


def _ratio(write: Writer) -> None:
    """Convert the importance ratio and its clip."""
    given, kind = write.given, write.given("loss_type")
    sources = ("loss_type", "importance_sampling_level")
    level = given("importance_sampling_level")
    high = given("epsilon_high") if given.has("epsilon_high") else given("epsilon")
    if kind == "sapo":
        write.option("ratio=sapo", *sources)
        write.set("ratio.tau_positive", given("sapo_temperature_pos"), "sapo_temperature_pos")
        write.set("ratio.tau_negative", given("sapo_temperature_neg"), "sapo_temperature_neg")
    elif kind == "cispo":
        write.option("ratio=cispo", *sources)
        # TRL's number is the cap itself; ours is what the cap has above 1.
        if high >= 1.0:
            write.set("ratio.clip_high", round(high - 1.0, 12), "epsilon_high")
        else:
            write.note(
                f"epsilon_high={high} is cispo's cap in TRL, below 1: rlkit keeps its cap of 5"
            )
            write.lose("epsilon_high", "with cispo it is the cap itself and must be at least 1")
        return
    else:
        write.option("ratio=token", *sources)
        write.set("ratio.clip_low", given("epsilon"), "epsilon")
        write.set("ratio.clip_high", high, "epsilon_high", "epsilon")
        write.if_given("delta", "ratio.delta")
    if level == "sequence":
        write.set("ratio.level", "sequence_mean", "importance_sampling_level")
    elif level != "token":
        write.lose("importance_sampling_level", "rlkit has token and sequence")


def _kl(write: Writer) -> None:
    """Convert the KL term: k3 in the loss, by default with a live importance weight."""
    given = write.given
    corrected = given("use_bias_correction_kl")
    if given("beta") == 0:
        write.option("kl=none", "beta")
        return
    sources = ("beta", "use_bias_correction_kl")
    write.option("kl=reverse_k3_corrected" if corrected else "kl=reverse_k3", *sources)
    write.set("kl.beta", given("beta"), "beta")
    if corrected and given("importance_sampling_level") == "sequence":
        write.note(
            "rlkit weights the KL of each token by its own ratio, TRL by the ratio of the row"
        )


def _advantage(write: Writer) -> None:
    """Convert baseline, scale and the sum of reward functions."""
    given, key = write.given, "multi_objective_aggregation"
    scale = given("scale_rewards")
    if given(key) == "normalize_then_sum":
        write.set("algorithm.advantage.combine", "normalize_each", key)
        # Each function is a z-score of its group there, whatever `scale_rewards` says.
        write.set("algorithm.advantage.scale", "group_std", key)
        if SCALES.get(scale) != "group_std":
            write.lose("scale_rewards", f"{key}=normalize_then_sum fixes the scale")
        else:
            write.same("scale_rewards")
        return
    if given(key) == "sum_then_normalize":
        write.set("algorithm.advantage.combine", "sum", key)
    else:
        write.lose(key, "rlkit has sum_then_normalize and normalize_then_sum")
    if scale in SCALES:
        write.set("algorithm.advantage.scale", SCALES[scale], "scale_rewards")
    else:
        write.lose("scale_rewards", "rlkit has group, batch and none")


def _sampling(write: Writer) -> None:
    """Convert the sampler, its distribution, and the correction of its log-probabilities."""
    given = write.given
    server = given("vllm_mode") == "server"
    if not given("use_vllm"):
        write.option("generator=hf", "use_vllm")
    elif server:
        write.option("generator=vllm_server", "use_vllm", "vllm_mode")
        at = (
            given("vllm_server_base_url")
            or f"http://{given('vllm_server_host')}:{given('vllm_server_port')}"
        )
        write.set(
            "generator.url", at, "vllm_server_base_url", "vllm_server_host", "vllm_server_port"
        )
    else:
        write.option("generator=vllm", "use_vllm", "vllm_mode")
    for name in ("temperature", "top_p"):
        write.set(f"generator.sampling.{name}", given(name), name)
    write.set("generator.sampling.top_k", max(0, given("top_k")), "top_k")
    write.if_given("min_p", "generator.sampling.min_p")
    if given("repetition_penalty") != 1.0:
        if given("use_vllm"):
            word = "+generator.sampling.extra.repetition_penalty"
            write.set(word, given("repetition_penalty"), "repetition_penalty")
        else:
            write.lose("repetition_penalty", "it needs generator=vllm")
    write.set("task.max_completion_length", given("max_completion_length"), "max_completion_length")
    _correction(write)
    kwargs = given("chat_template_kwargs") if given.has("chat_template_kwargs") else {}
    for name, value in kwargs.items() if isinstance(kwargs, dict) else ():
        write.set(f"+model.chat_template_kwargs.{name}", value, "chat_template_kwargs")


def _correction(write: Writer) -> None:
    given = write.given
    mode = given("vllm_importance_sampling_mode")
    keys = ("vllm_importance_sampling_correction", "vllm_importance_sampling_mode")
    high = "vllm_importance_sampling_clip_max"
    if given.has("vllm_importance_sampling_cap"):
        high = "vllm_importance_sampling_cap"
    low = given("vllm_importance_sampling_clip_min")
    if not (given("use_vllm") and given(keys[0])):
        given(high)
        write.option("correction=none", *keys)
    elif mode in CORRECTIONS:
        write.option(f"correction={CORRECTIONS[mode]}", *keys)
        top = given(high)
        write.set("correction.high", math.inf if top is None else top, high)
        # Our token mask has a lower bound of its own.
        if low is not None or mode == "token_mask":
            write.set("correction.low", low or 0.0, "vllm_importance_sampling_clip_min")
    else:
        write.lose(keys[1], f"rlkit has {', '.join(CORRECTIONS)}")
