"""Does vLLM still sample from the policy that the trainer scores? It is asked while training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from rlkit.generation.vllm.lora import Injector, LoRAInjector, Mode
from rlkit.generation.vllm.probe import Score, mean_difference, sample

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest


class Watchable(Injector, Protocol):
    """An injector that knows its engine."""

    llm: Any


class WatchedInjector:
    """An injector that compares vLLM with the trainer on the probe prompts now and then."""

    def __init__(
        self,
        injector: Watchable,
        score: Score,
        *,
        explain: Callable[[Mapping[str, Tensor]], str],
        tolerance: float,
        every: int,
        warn: Callable[[str], None],
    ) -> None:
        """`warn` gets a line when the logps differ by more than `tolerance`, and what `explain`
        says of the tensors then.

        Every `every` loads, from the first on; 0 = never. A comparison costs some tens of ms.
        """
        self._injector = injector
        self._score = score
        self._explain = explain
        self._tolerance = tolerance
        self._every = every
        self._warn = warn
        self._num_loads = 0

    @property
    def request(self) -> LoRARequest | None:
        """Do what the injector does."""
        return self._injector.request

    def load(self, tensors: Mapping[str, Tensor], version: int) -> object:
        """Do what the injector does."""
        injection = self._injector.load(tensors, version)
        if self._every and self._num_loads % self._every == 0:
            rows, logps = sample(self._injector.llm, self._injector.request)
            error = mean_difference(logps, self._score(tensors, rows))
            if not error <= self._tolerance:
                self._warn(
                    f"version {version}: sampling logps are off the trainer's by {error:.2g} a "
                    f"token (expected <= {self._tolerance:.2g}): {self._explain(tensors)}"
                )
        self._num_loads += 1
        return injection


def explain_mismatch(injector: LoRAInjector, tensors: Mapping[str, Tensor]) -> str:
    """Say what is probably wrong when vLLM's logps are not those of the adapter `tensors`."""
    if injector.request is None:
        return "vLLM samples without any adapter; load_adapter was not called"
    if injector.mode is not Mode.in_place:
        return f"the adapter went to vLLM by way of {injector.mode.value}"
    if wrong := injector.differences(tensors):
        return (
            f"vLLM holds another adapter than the trainer's ({len(wrong)} tensors differ, "
            f"{wrong[0]} first); load_adapter must follow every update"
        )
    return (
        "the adapter in vLLM is the trainer's bit for bit, so the base weights, the "
        "sampling options (top_p, top_k, min_p, extra fields) or 8-bit keys and values differ"
    )
