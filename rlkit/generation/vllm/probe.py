"""Does vLLM sample from the policy that the trainer scores? Asked at the start of a run.

Every way of handing over an adapter is tried with random adapters on probe prompts: vLLM's sampled
logps must equal the trainer's own on the same tokens, and what the ways leave in vLLM's buffers
must be the same bits. The fastest way that passes is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlkit.generation.vllm import life
from rlkit.generation.vllm.lora import LoRAInjector, Mode

_NUM_PROMPTS, _NUM_TOKENS = 2, 8
_STRENGTHS = (0.4, 0.8, 1.6, 3.2)
"""Sizes of a random adapter's update in units of its input, tried until the effect is clear."""
CLEAR = 4.0
"""How many times the tolerance an adapter must move the logps, for the test to tell anything."""


class ProbeRow(NamedTuple):
    """One prompt with the tokens that vLLM sampled."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


Score = Callable[[Mapping[str, Tensor] | None, Sequence[ProbeRow]], Sequence[Sequence[float]]]
"""The trainer's logps at temperature 1 of the completions, under an adapter; None = base model."""


class Verdict(NamedTuple):
    """What the self-test found about one way."""

    mode: Mode
    error: float
    """Mean |logp(vLLM) - logp(trainer)| over the probe tokens, the largest of all adapters."""
    problem: str
    """Why the way is not used; empty = it passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """The chosen way, and what was found about each."""

    mode: Mode
    verdicts: tuple[Verdict, ...]
    effect: float
    """Mean |logp(adapter) - logp(base)|, by the trainer: how much there was to get wrong."""
    tolerance: float
    num_layers: int
    seconds: float

    def __str__(self) -> str:
        found = ", ".join(f"{v.mode.value} {v.problem or f'{v.error:.1e}'}" for v in self.verdicts)
        return (
            f"LoRA to vLLM: {self.mode.value}, {self.num_layers} layers; logps off the trainer's "
            f"by {found} (allowed {self.tolerance:.0e}, the adapter moves them by "
            f"{self.effect:.2f}); {self.seconds:.1f} s"
        )


def mismatch_limit(dtype: torch.dtype, *, kv_cache_bits: int = 16) -> float:
    """The mean |logp(vLLM) - logp(trainer)| beyond which more than rounding must be wrong.

    Two to four times what was measured with a right adapter: float32 1e-5, bfloat16 0.02 to 0.065
    (CPU and H200), 8-bit keys and values 0.17 (e4m3) and 0.29 (e5m2) in bfloat16.
    """
    limits = {torch.float32: 1e-3, torch.float16: 0.05}
    limit = limits.get(dtype, 0.2)
    return max(limit, 0.6) if kv_cache_bits == 8 else limit


def self_test(
    injector: LoRAInjector,
    score: Score,
    *,
    like: Mapping[str, Tensor],
    tolerance: float,
) -> SelfTest:
    """Choose `injector.mode`; afterwards the injector holds no adapter. `like` gives the shapes.

    Raises RuntimeError when no way gives the trainer's logps.
    """
    begin = time.perf_counter()
    prompts = probe_prompts(injector.llm)
    on_host = {key: tensor.new_empty(tensor.shape, device="cpu") for key, tensor in like.items()}
    for strength in _STRENGTHS:
        # In host memory until they are used: of a 70B model each takes almost a gigabyte.
        adapters = [
            random_adapter(on_host, injector.scale, seed=seed, strength=strength) for seed in (1, 2)
        ]
        effect = _effect(score, _beside(like, adapters[0]), prompts)
        if effect >= CLEAR * tolerance:
            break
    trial = _Trial(injector, score, adapters, like)
    verdicts = [trial.verdict(mode, tolerance) for mode in Mode]
    passed = [verdict.mode for verdict in verdicts if not verdict.problem]
    if not passed:
        found = "; ".join(f"{v.mode.value}: {v.problem}" for v in verdicts)
        raise RuntimeError(f"vLLM does not sample from the trainer's policy: {found}")
    injector.mode = passed[0]
    return SelfTest(
        mode=injector.mode,
        verdicts=tuple(verdicts),
        effect=effect,
        tolerance=tolerance,
        num_layers=len(injector.layers),
        seconds=time.perf_counter() - begin,
    )


class _Trial:
    """The adapters of a self-test and what has been found so far."""

    def __init__(
        self,
        injector: LoRAInjector,
        score: Score,
        adapters: Sequence[Mapping[str, Tensor]],
        like: Mapping[str, Tensor],
    ) -> None:
        self.injector = injector
        self.score = score
        self.adapters = adapters
        """In host memory."""
        self.like = like
        """The trainer's."""
        self.held: dict[str, Tensor] = {}
        """vLLM's buffers after the last adapter was written in place, if that passed; copies in
        host memory."""
        self.error = float("nan")
        """In place."""

    def verdict(self, mode: Mode, tolerance: float) -> Verdict:
        self.injector.mode = mode
        try:
            error, problem = self._outcome(tolerance)
        except Exception as reason:  # an unknown vLLM may fail in any way: the next one is tried
            error, problem = float("nan"), f"{type(reason).__name__}: {life.reason(reason)}"
        self.injector.unload()
        return Verdict(mode, error, problem)

    def _outcome(self, tolerance: float) -> tuple[float, str]:
        if self.held:
            # The same bits in the same buffers sample the same: no need to see it again.
            self.injector.load(_beside(self.like, self.adapters[-1]), version=-1)
            held = self._slot()
            wrong = [name for name, bits in self.held.items() if not torch.equal(bits, held[name])]
            return self.error, f"other bits in {len(wrong)} buffers ({wrong[0]})" if wrong else ""
        error = 0.0
        for on_host in self.adapters:
            adapter = _beside(self.like, on_host)
            self.injector.load(adapter, version=-1)
            rows, logps = sample(self.injector.llm, self.injector.request)
            error = max(error, mean_difference(logps, self.score(adapter, rows)))
        if not error <= tolerance:
            return error, f"off by {error:.1e}"
        if self.injector.mode is Mode.in_place:
            self.error, self.held = error, self._slot()
        return error, ""

    def _slot(self) -> dict[str, Tensor]:
        return {name: bits.cpu() for name, bits in self.injector.slot().items()}


def random_adapter(
    like: Mapping[str, Tensor], scale: float, *, seed: int, strength: float
) -> dict[str, Tensor]:
    """A and B normal, so that an update has `strength` times the size of the layer's input."""
    generator = torch.Generator().manual_seed(seed)
    adapter = {}
    for key, tensor in like.items():
        rows, columns = tensor.shape
        is_a = ".lora_A." in key
        size = columns**-0.5 if is_a else strength / (scale * columns**0.5)
        values = torch.randn(rows, columns, generator=generator) * size
        adapter[key] = values.to(tensor.device, torch.float32)
    return adapter


def probe_prompts(llm: Any) -> list[tuple[int, ...]]:
    """A few prompts of ids all over the vocabulary, always the same.

    They span more than two blocks of the prefix cache: an adapter that finds the blocks of another
    one gives itself away.
    """
    config = llm.llm_engine.vllm_config
    vocabulary = config.model_config.get_vocab_size()
    longest = config.model_config.max_model_len - _NUM_TOKENS
    length = min(2 * config.cache_config.block_size + 3, longest)
    return [
        tuple((101 * i * i + 7919 * i + 13 * n) % vocabulary for i in range(1, length + 1))
        for n in range(_NUM_PROMPTS)
    ]


def sample(llm: Any, request: Any) -> tuple[list[ProbeRow], list[list[float]]]:
    """The probe prompts with a few tokens sampled under a `LoRARequest`, and vLLM's logps."""
    from vllm import SamplingParams

    prompts = probe_prompts(llm)
    options = SamplingParams(
        max_tokens=_NUM_TOKENS, ignore_eos=True, seed=0, logprobs=0, detokenize=False
    )
    outputs = llm.generate(
        [{"prompt_token_ids": list(prompt)} for prompt in prompts],
        options,
        lora_request=request,
        use_tqdm=False,
    )
    samples = [output.outputs[0] for output in outputs]
    rows = [
        ProbeRow(prompt, tuple(sampled.token_ids))
        for prompt, sampled in zip(prompts, samples, strict=True)
    ]
    logps = [
        [step[token].logprob for step, token in zip(s.logprobs, s.token_ids, strict=True)]
        for s in samples
    ]
    return rows, logps


def mean_difference(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> float:
    """Mean |left - right| over all tokens."""
    pairs = [pair for a, b in zip(left, right, strict=True) for pair in zip(a, b, strict=True)]
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


def _effect(
    score: Score, adapter: Mapping[str, Tensor], prompts: Sequence[tuple[int, ...]]
) -> float:
    split = max(1, len(prompts[0]) - _NUM_TOKENS)
    rows = [ProbeRow(prompt[:split], prompt[split:]) for prompt in prompts]
    return mean_difference(score(adapter, rows), score(None, rows))


def _beside(like: Mapping[str, Tensor], adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`adapter` on the devices of `like`."""
    return {key: tensor.to(like[key].device) for key, tensor in adapter.items()}
