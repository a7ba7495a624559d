"""All weights of a policy into a running vLLM engine, in place: neither a reload nor new graphs.

The weights that the trainer computes with may be views of vLLM's. Then an update is there as soon
as they follow the masters, and nothing is copied. Elsewhere they are copied over vLLM's own. Either
way the prefix cache is emptied: its blocks do not know the weights that they were made with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rlkit.generation.vllm.probe import Score, clear_effect, mean_difference, sample
from rlkit.generation.vllm.weights import push_weights, weight_views

_FIRST_LAYER = ".layers.0."
"""In the names of what the self-test changes: every key and value after that layer changes too."""


class WeightInjector:
    """This `lora.Injector` keeps the weights of one engine those of the policy."""

    def __init__(
        self, llm: Any, copies: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    ) -> None:
        """Edit one engine; `copies` turns masters into the trainer's weights in its dtype."""
        self.llm = llm
        self._copies = copies

    @property
    def request(self) -> None:
        """Requests carry no adapter."""
        return None

    def load(self, tensors: Mapping[str, Tensor], version: int) -> int:
        """Sample with the masters `tensors` from the next request on; return the bytes copied.

        `version` needs no telling: no key or value of an earlier one is left.
        """
        return push_weights(self.llm, self._copies(tensors))

    def differences(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Name the weights that vLLM does not hold as the trainer computes with them."""
        if self.llm.llm_engine.vllm_config.parallel_config.tensor_parallel_size > 1:
            # A part of a fused layer is cut by vLLM alone: what a load changes was otherwise.
            before = self.llm.collective_rpc("rlkit_part_bits")[0]
            push_weights(self.llm, self._copies(tensors))
            after = self.llm.collective_rpc("rlkit_part_bits")[0]
            return [name for name, bits in before.items() if not torch.equal(bits, after[name])]
        views, copies = weight_views(self.llm), self._copies(tensors)
        return [
            name
            for name, copy in copies.items()
            if copy.data_ptr() != views[name].data_ptr() and not torch.equal(views[name], copy)
        ]

    def explain(self, tensors: Mapping[str, Tensor]) -> str:
        """Say what is probably wrong when vLLM's logps are not those of `tensors`."""
        if wrong := self.differences(tensors):
            return (
                f"vLLM holds other weights than the trainer's ({len(wrong)} differ, {wrong[0]} "
                "first); load_adapter must follow every update"
            )
        return (
            "the weights in vLLM are the trainer's bit for bit, so the sampling options (top_p, "
            "top_k, min_p, extra fields) or 8-bit keys and values differ"
        )


@torch.no_grad()
def self_test(
    injector: WeightInjector, score: Score, weights: Mapping[str, Tensor], *, tolerance: float
) -> str:
    """Test that vLLM samples from the policy that the trainer scores, and follows its changes.

    The first layer has its signs changed for a moment, to the last bit back and forth. vLLM must
    follow, past its prefix cache.

    Args:
        injector: The way of the weights into vLLM.
        score: The trainer's own logps of sampled rows.
        weights: The trainer's weights by name; they are unchanged afterwards.
        tolerance: The largest mean difference of logps, in nats a token, > 0.

    Returns:
        One line for the summary of the engine.

    Raises:
        RuntimeError: vLLM's logps are off by more than `tolerance`, or with changed signs by more
            than a tenth of what the change makes.
    """
    begin = time.perf_counter()
    layer = [tensor for name, tensor in weights.items() if _FIRST_LAYER in name]
    copied = injector.load(weights, 0)
    rows, logps = sample(injector.llm, None)
    error = mean_difference(logps, score(weights, rows))
    torch._foreach_neg_(layer)
    try:
        effect = mean_difference(logps, score(weights, rows))
        # A policy that makes no sense magnifies rounding: 0.27 of 10 nats in bfloat16, SmolLM2.
        _require(injector, weights, _error(injector, score, weights), max(tolerance, effect / 10))
    finally:
        torch._foreach_neg_(layer)
    error = max(error, _error(injector, score, weights))
    _require(injector, weights, error, tolerance)
    way = f"{copied / 1e9:.2f} GB copied in place" if copied else "shared, nothing to copy"
    told = "" if effect >= clear_effect(tolerance) else ", too little to tell"
    return (
        f"weights to vLLM: {way}; logps off the trainer's by {error:.1e} (allowed "
        f"{tolerance:.0e}, another first layer moves them by {effect:.2f}{told}); "
        f"{time.perf_counter() - begin:.1f} s"
    )


def _error(injector: WeightInjector, score: Score, weights: Mapping[str, Tensor]) -> float:
    injector.load(weights, 0)
    rows, logps = sample(injector.llm, None)
    return mean_difference(logps, score(weights, rows))


def _require(
    injector: WeightInjector, weights: Mapping[str, Tensor], error: float, limit: float
) -> None:
    if not error <= limit or injector.differences(weights):
        raise RuntimeError(
            f"vLLM does not sample from the trainer's policy: off by {error:.1e} a token "
            f"(allowed {limit:.0e}); {injector.explain(weights)}"
        )
