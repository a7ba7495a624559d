"""Does vLLM sample from the policy that the trainer scores? A self-test asks at a run's start.

Every way of handing over an adapter is tried with random adapters on probe prompts. vLLM's sampled
logps must equal the trainer's own on the same tokens. What the ways leave in vLLM's buffers must be
the same bits. The fastest way that passes is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlkit.generation.vllm import life
from rlkit.generation.vllm.lora import LoRAInjector, Mode
from rlkit.models.rope import switches

_NUM_PROMPTS, _NUM_TOKENS = 2, 8
_SEEDS = (1, 2)
"""Of the random adapters."""
_STRENGTHS = (0.4, 0.8, 1.6, 3.2)
"""Sizes of a random adapter's update in units of its input, tried until the effect is clear."""
_CLEAR = 4.0
"""How many times the tolerance an adapter must move the logps, for the test to tell anything."""
_CLEAR_IN_8_BITS = 1.5
"""The same for 8-bit keys and values: what moves logps by nats magnifies their rounding, too (1.3
nats with four times the tolerance, on an H200)."""
_TOLERANCE_IN_16_BITS = 0.2


class ProbeRow(NamedTuple):
    """This is one prompt with the tokens that vLLM sampled."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


Score = Callable[[Mapping[str, Tensor] | None, Sequence[ProbeRow]], Sequence[Sequence[float]]]
"""The trainer's logps at temperature 1 of the completions, under an adapter; None = base model."""


class RouteVerdict(NamedTuple):
    """This is what the self-test found about one way."""

    mode: Mode
    error: float
    """Mean |logp(vLLM) - logp(trainer)| over the probe tokens, the largest of all adapters."""
    problem: str
    """Why the way is not used; empty = it passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """This is the chosen way, and what was found about each."""

    mode: Mode
    verdicts: tuple[RouteVerdict, ...]
    effect: float
    """Mean |logp(adapter) - logp(base)|, by the trainer: how much there was to get wrong."""
    tolerance: float
    num_layers: int
    seconds: float

    def __str__(self) -> str:
        found = ", ".join(f"{v.mode.value} {v.problem or f'{v.error:.1e}'}" for v in self.verdicts)
        way = self.mode.value
        if self.mode is not Mode.in_place:
            way += " (warning: hundreds of times slower than in_place)"
        told = "" if self.effect >= clear_effect(self.tolerance) else ", too little to tell"
        return (
            f"LoRA to vLLM: {way}, {self.num_layers} layers; logps off the trainer's "
            f"by {found} (allowed {self.tolerance:.0e}, the adapter moves them by "
            f"{self.effect:.2f}{told}); {self.seconds:.1f} s"
        )


def mismatch_limit(dtype: torch.dtype, *, kv_cache_bits: int = 16) -> float:
    """Give the mean |logp(vLLM) - logp(trainer)| beyond which more than rounding is wrong.

    Two to four times what was measured with a right adapter: float32 1e-5, bfloat16 0.02 to 0.065
    (CPU and H200), 8-bit keys and values 0.17 (e4m3) and 0.29 (e5m2) in bfloat16.
    """
    limits = {torch.float32: 1e-3, torch.float16: 0.05}
    limit = limits.get(dtype, _TOLERANCE_IN_16_BITS)
    return max(limit, 0.6) if kv_cache_bits == 8 else limit


def clear_effect(tolerance: float) -> float:
    """Say how far, in nats a token, an adapter must move logps for a test to tell anything."""
    coarse = tolerance > _TOLERANCE_IN_16_BITS
    return tolerance * (_CLEAR_IN_8_BITS if coarse else _CLEAR)


@torch.no_grad()
def self_test(
    injector: LoRAInjector,
    score: Score,
    *,
    tensors: Mapping[str, Tensor],
    tolerance: float,
) -> SelfTest:
    """Choose `injector.mode`; afterwards the injector holds no adapter.

    The random adapters are drawn into the trainer's own `tensors`, so that none is held beside
    them. What was there is put back, bit for bit.

    Args:
        injector: The ways of an adapter into vLLM.
        score: The trainer's own logps of sampled rows.
        tensors: The trainer's adapter.
        tolerance: The largest mean difference of logps, in nats a token, > 0.

    Raises:
        RuntimeError: No way gives the trainer's logps.
        torch.OutOfMemoryError: There is no room to tell.
    """
    begin = time.perf_counter()
    prompts = probe_prompts(injector.llm)
    life.collect_garbage()
    with _put_back(tensors):
        trial = _Trial(injector, score, tensors)
        for strength in _STRENGTHS:
            trial.strength = strength
            trial.draw(_SEEDS[0])
            effect = _effect(score, tensors, prompts)
            if effect >= clear_effect(tolerance):
                break
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
    """This is what a self-test has found so far."""

    def __init__(self, injector: LoRAInjector, score: Score, tensors: Mapping[str, Tensor]) -> None:
        self.injector = injector
        self.score = score
        self.tensors = tensors
        """The trainer's, which hold the adapters in turn."""
        self.strength = 0.0
        self.held: dict[str, Tensor] = {}
        """vLLM's buffers after the last adapter was written in place, if that passed; copies in
        host memory."""
        self.error = float("nan")
        """In place."""

    def draw(self, seed: int) -> None:
        """Draw another random adapter."""
        scale = self.injector.scale
        for key, value in random_factors(self.tensors, scale, seed=seed, strength=self.strength):
            self.tensors[key].copy_(value)

    def verdict(self, mode: Mode, tolerance: float) -> RouteVerdict:
        self.injector.mode = mode
        try:
            error, problem = self._outcome(tolerance)
        except torch.OutOfMemoryError:
            raise  # says nothing about the way: the run itself would have no room
        except Exception as reason:  # an unknown vLLM may fail in any way: the next one is tried
            error, problem = float("nan"), f"{type(reason).__name__}: {life.reason(reason)}"
        finally:
            self.injector.unload()
        return RouteVerdict(mode, error, problem)

    def _outcome(self, tolerance: float) -> tuple[float, str]:
        if self.held:
            # The same bits in the same buffers sample the same: no need to see it again.
            self.injector.load(self.tensors, version=-1)
            slot = self.injector.slot()
            wrong = [n for n, bits in self.held.items() if not torch.equal(bits, slot[n].cpu())]
            return self.error, f"other bits in {len(wrong)} buffers ({wrong[0]})" if wrong else ""
        error = 0.0
        for seed in _SEEDS:
            self.draw(seed)
            self.injector.load(self.tensors, version=-1)
            rows, logps = sample(self.injector.llm, self.injector.request)
            error = max(error, mean_difference(logps, self.score(self.tensors, rows)))
        if not error <= tolerance:
            return error, f"off by {error:.1e}"
        if self.injector.mode is Mode.in_place:
            slot = self.injector.slot()
            self.held = {name: bits.to("cpu", copy=True) for name, bits in slot.items()}
            self.error = error
        return error, ""


def random_factors(
    like: Mapping[str, Tensor], scale: float, *, seed: int, strength: float
) -> Iterator[tuple[str, Tensor]]:
    """Draw normal A and B: an update has `strength` times the size of the layer's input.

    Args:
        like: The adapter whose keys, shapes and device are used.
        scale: The factor of B A in the layer's output, not 0.
        seed: The seed of the generator.
        strength: The size of the update over that of the input, > 0.

    Yields:
        One float32 tensor at a time with its key.
    """
    device = next(iter(like.values())).device
    generator = torch.Generator(device).manual_seed(seed)
    for key, tensor in like.items():
        rows, columns = tensor.shape
        size = 1.0 if ".lora_A." in key else strength / scale
        value = torch.empty(rows, columns, device=device)
        yield key, value.normal_(0.0, size * columns**-0.5, generator=generator)


def probe_prompts(llm: Any) -> list[tuple[int, ...]]:
    """Make a few prompts of ids all over the vocabulary, always the same.

    They span more than two blocks of the prefix cache: an adapter that finds the blocks of another
    one gives itself away. Where rotary factors change with the length, two more prompts have rows
    that end just before the change and begin just behind it.
    """
    config = llm.llm_engine.vllm_config
    vocabulary = config.model_config.get_vocab_size()
    longest = config.model_config.max_model_len - _NUM_TOKENS
    lengths = [min(2 * config.cache_config.block_size + 3, longest)] * _NUM_PROMPTS
    for last in switches(config.model_config.hf_config).values():
        lengths += [n for n in (last - _NUM_TOKENS, last + 1) if 0 < n <= longest]
    return [
        tuple((101 * i * i + 7919 * i + 13 * n) % vocabulary for i in range(1, length + 1))
        for n, length in enumerate(lengths)
    ]


def sample(llm: Any, request: Any) -> tuple[list[ProbeRow], list[list[float]]]:
    """Sample a few tokens for the probe prompts under a `LoRARequest`; give vLLM's logps."""
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
    """Return the mean |left - right| over all tokens."""
    pairs = [pair for a, b in zip(left, right, strict=True) for pair in zip(a, b, strict=True)]
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


def _effect(
    score: Score, adapter: Mapping[str, Tensor], prompts: Sequence[tuple[int, ...]]
) -> float:
    splits = [max(1, len(prompt) - _NUM_TOKENS) for prompt in prompts]
    rows = [ProbeRow(p[:split], p[split:]) for p, split in zip(prompts, splits, strict=True)]
    return mean_difference(score(adapter, rows), score(None, rows))


@contextmanager
def _put_back(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Put back afterwards what `tensors` held before."""
    kept = {key: tensor.to("cpu", copy=True) for key, tensor in tensors.items()}
    try:
        yield
    finally:
        for key, tensor in tensors.items():
            tensor.copy_(kept[key])
