"""These are the memory plan's questions to a generator, and the plan's answers to it.

A generator's config answers by `GeneratorConfig.demand`, and `GeneratorConfig.with_choice` makes a
copy of it that asks for exactly what the plan gives. So the plan never asks which generator it is.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Sampler(StrEnum):
    """Who samples, as far as memory goes."""

    hf = "hf"
    """transformers on the trainer's weights; keys and values live during sampling only."""
    vllm = "vllm"
    """vLLM in this process on the same weights."""
    vllm_separate = "vllm_separate"
    """vLLM with weights of its own, always on the device."""
    vllm_sleep = "vllm_sleep"
    """vLLM with weights of its own, on the device while it samples."""
    elsewhere = "elsewhere"
    """A server: nothing on this device."""


class GeneratorDemand(NamedTuple):
    """The memory that a generator takes of the device, and what it leaves to the plan."""

    sampler: Sampler
    max_at_once: int
    """Most completions decoded at once, >= 1."""
    kv_value_bytes: int = 0
    """Bytes of a number in the key-value cache; 0 = those of the model's dtype."""
    releases_kv: bool = False
    """Whether the cache goes back to the device between generations."""
    in_nf4: bool = False
    """Whether the generator has NF4 weights of its own."""
    kv_cache_bytes: int = 0
    """Size of the key-value cache; 0 = the plan's choice."""
    engine_tokens: int = 0
    """Most tokens of one engine step; 0 = the plan's choice."""
    spare_tokens: int = 0
    """Places of the cache beyond a row's longest, to which wrong guesses write."""
    graphs: bool | None = None
    """Whether CUDA graphs are captured; None = the plan's choice."""
    parts: int = 1
    """Ranks that share one engine, of which each holds a part of the weights and of the cache."""


class EngineChoice(NamedTuple):
    """The share of the device that the plan gives to a generator."""

    kv_cache_bytes: int
    at_once: int
    """Completions decoded at once."""
    engine_tokens: int
    graphs: bool
