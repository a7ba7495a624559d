"""This module makes the generator of a run, once model, policy and engine are there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rlkit.config import ConfigError
from rlkit.generation import (
    GeneratorConfig,
    HFGeneratorConfig,
    VLLMGeneratorConfig,
    VLLMServerConfig,
)
from rlkit.generation.base import ProgressCallback
from rlkit.generation.hf import HFGenerator
from rlkit.generation.vllm.config import KVCacheDType
from rlkit.models.families import head_of
from rlkit.models.load import BaseModel
from rlkit.policy.full_weights import FullWeights
from rlkit.policy.lora import LoRA, attach
from rlkit.policy.policy import Policy
from rlkit.runtime.say import Say
from rlkit.training.collate import collate
from rlkit.types import FinishReason, Generator, Prompt, Rollout, RolloutBatch, ScoredRollout

if TYPE_CHECKING:
    from rlkit.generation.vllm.engine import Engine
    from rlkit.generation.vllm.lora import Injector
    from rlkit.generation.vllm.probe import ProbeRow, Score
    from rlkit.generation.vllm.watch import Watchable

_WATCH_EVERY = 25
"""Updates between two comparisons of vLLM with the trainer; one takes some tens of ms."""
_log = logging.getLogger(__name__)


def bind_adapter(
    config: GeneratorConfig,
    engine: Engine | None,
    base: BaseModel,
    policy: Policy,
    *,
    sampled: BaseModel | None = None,
    say: Say,
) -> Injector | None:
    """Return the injector that hands what trains to `engine`, found good by a self-test.

    Args:
        config: The options of the generator.
        engine: The engine that samples; None = there is none.
        base: The model that the policy trains on.
        policy: The policy.
        sampled: The model on the engine's weights where these are not the policy's, for the test.
        say: Takes a line before each slow step.

    Returns:
        The injector, or None without an engine.

    Raises:
        ConfigError: vLLM does not sample from what the trainer scores.
    """
    if engine is None or not isinstance(config, VLLMGeneratorConfig):
        return None
    from rlkit.generation.vllm.probe import mismatch_limit
    from rlkit.generation.vllm.watch import WatchedInjector

    kv_cache_bits = 16 if config.kv_cache_dtype is KVCacheDType.auto else 8
    tolerance = mismatch_limit(base.dtype, kv_cache_bits=kv_cache_bits)
    bind = _bind_lora if isinstance(policy.tuning, LoRA) else _bind_weights
    try:
        bound = bind(engine, policy, sampled, tolerance, say)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            "memory.budget must leave room for the comparison with vLLM at the start "
            "(generator.kv_cache_bytes makes the cache smaller), got: "
            + ". ".join(str(error).split(". ")[:2])
        ) from error
    except RuntimeError as error:
        raise ConfigError(f"generator must be hf for this model: {error}") from error
    return WatchedInjector(
        bound.injector,
        bound.score,
        explain=bound.explain,
        tolerance=tolerance,
        every=_WATCH_EVERY,
        warn=_log.warning,
    )


class _Bound(NamedTuple):
    """This record holds an injector that passed its self-test, and the way to watch it."""

    injector: Watchable
    score: Score
    explain: Callable[[Mapping[str, Tensor]], str]


def _bind_lora(
    engine: Engine, policy: Policy, sampled: BaseModel | None, tolerance: float, say: Say
) -> _Bound:
    from rlkit.generation.vllm.lora import LoRAInjector
    from rlkit.generation.vllm.probe import self_test
    from rlkit.generation.vllm.watch import explain_mismatch

    lora = _lora_of(policy)
    injector = LoRAInjector(
        engine.llm,
        tuple(lora.shapes),
        rank=lora.config.rank,
        scale=lora.config.scale,
        key=lora.key,
    )
    score = policy_score(policy if sampled is None else _on(sampled, policy))
    say(str(self_test(injector, score, tensors=policy.adapter, tolerance=tolerance)))
    return _Bound(injector, score, partial(explain_mismatch, injector))


def _bind_weights(
    engine: Engine, policy: Policy, _sampled: BaseModel | None, tolerance: float, say: Say
) -> _Bound:
    from rlkit.generation.vllm.full import WeightInjector, self_test

    tuning = policy.tuning
    assert isinstance(tuning, FullWeights)
    injector = WeightInjector(engine.llm, tuning.copies)
    score = policy_score(policy)
    say(self_test(injector, score, policy.adapter, tolerance=tolerance))
    return _Bound(injector, score, injector.explain)


def _lora_of(policy: Policy) -> LoRA:
    if not isinstance(policy.tuning, LoRA):
        raise ConfigError("model.tuning must be lora with this generator, got full")
    return policy.tuning


def _on(base: BaseModel, policy: Policy) -> Policy:
    """Return `policy` on another base of the same shape, without tensors that train."""
    return replace(
        policy,
        model=base.model,
        tuning=attach(base.model, _lora_of(policy).config, dtype=base.dtype),
        head=head_of(base.model),
        adapter={},
        critic=None,
    )


def policy_score(policy: Policy) -> Score:
    """Return the trainer's logps of probe completions at temperature 1, whose lengths are equal."""

    @torch.no_grad()
    def score(
        adapter: Mapping[str, Tensor] | None, rows: Sequence[ProbeRow]
    ) -> Sequence[Sequence[float]]:
        batch = _probe_batch(rows, device=policy.head.weight.device)
        logps: list[list[float]] = policy.forward(
            batch, adapter=adapter, temperature=1.0
        ).logps.tolist()
        return logps

    return score


def new_generator(
    config: GeneratorConfig,
    base: BaseModel,
    policy: Policy,
    *,
    engine: Engine | None,
    injector: Injector | None,
    progress: ProgressCallback,
) -> Generator:
    """Return the generator that `config` describes.

    Args:
        config: The options of the generator.
        base: The model, for its tokenizer and weights.
        policy: The policy that samples.
        engine: The engine of the run; None = there is none.
        injector: It hands the adapter to the engine; None = there is no engine.
        progress: It hears of every token, and may end a call of `generate`.

    Returns:
        The generator.
    """
    if isinstance(config, HFGeneratorConfig):
        return HFGenerator(
            base.model,
            base.tokenizer,
            activate=policy.tuning.active,
            stop_token_ids=base.stop_ids,
            config=config,
            progress=progress,
        )
    if isinstance(config, VLLMGeneratorConfig) and engine is not None and injector is not None:
        from rlkit.generation.vllm.generator import VLLMGenerator

        return VLLMGenerator(
            engine, injector, stop_token_ids=base.stop_ids, config=config, progress=progress
        )
    if isinstance(config, VLLMServerConfig):
        return _vllm_server(config, base, policy, progress=progress)
    raise ConfigError(f"generator must be auto, hf, vllm or vllm_server, got {type(config)}")


def _vllm_server(
    config: VLLMServerConfig, base: BaseModel, policy: Policy, *, progress: ProgressCallback
) -> Generator:
    from rlkit.generation.vllm.server import AdapterFiles, VLLMServerGenerator

    lora = _lora_of(policy)
    files = AdapterFiles(
        rank=lora.config.rank,
        scale=lora.config.scale,
        modules=tuple(sorted({layer.rsplit(".", 1)[-1] for layer in lora.shapes})),
        base_model=base.location,
    )
    return VLLMServerGenerator(config, files, stop_token_ids=base.stop_ids, progress=progress)


def _probe_batch(rows: Sequence[ProbeRow], *, device: torch.device) -> RolloutBatch:
    """Return one batch of probe rows; only their token ids are read."""
    samples = [
        ScoredRollout(
            rollout=Rollout(
                prompt=Prompt(index=number, ids=row.prompt_ids, text=""),
                sample_index=0,
                completion_ids=row.completion_ids,
                sampling_logps=(0.0,) * len(row.completion_ids),
                finish_reason=FinishReason.length,
                policy_version=0,
            ),
            text="",
            components=(),
            reward=0.0,
        )
        for number, row in enumerate(rows)
    ]
    groups = [(sample,) for sample in samples]
    return collate(groups, reward_weights=(), pad_token_id=0, device=device)


def prompts_at_once(generator: GeneratorConfig, samples: int) -> int:
    """Return the prompts that a rank samples in one call; 0 = its whole share of a step.

    Only transformers' generator works batch after batch. vLLM takes prompts on the way, and says
    itself how many it holds. A server is best given all.
    """
    if not isinstance(generator, HFGeneratorConfig):
        return 0
    return max(1, generator.max_rows // samples)
