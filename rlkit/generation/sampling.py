"""Compute the sampling distribution and draw from it: pure functions of logits and seeds.

The distribution p of the next token comes from logits z of N rows over V words:

1. z / temperature;
2. min_p: keep tokens with p >= min_p * max p;
3. top_k: keep the top_k likeliest of them, ties at the edge included;
4. top_p: of those, renormalised, keep the likeliest that together reach top_p: a token stays while
   the likelier ones have less than top_p. Ties at the edge stay too, so that p is a function of z
   alone and not of the order of a sort;
5. p = softmax over what is left.

This is vLLM's order (vllm/v1/sample/sampler.py, 0.24), so that generators are interchangeable.
Sampling logps are log p of the sampled token under exactly this p: log_softmax(z / temperature)
without truncation, the renormalised distribution with it. All of it runs in float32 (float64 if
the logits are).

A row is drawn by inverting its cumulative distribution at one uniform number. That number is a hash
of the row's seed and the token's position, so other rows of the batch cannot reach a row's tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlkit.types import SamplingConfig

_BLOCK = 128
"""Divides the vocabulary of most models, so that padding copies nothing."""


class Draw(NamedTuple):
    """One sampled token per row."""

    ids: Int[Tensor, " N"]
    logps: Float[Tensor, " N"]
    """log p of `ids`; NaN for a row whose logits are not a distribution (NaN, +inf, all -inf)."""


def sample(
    logits: Float[Tensor, "N V"],
    seeds: Int[Tensor, " N"],
    position: int | Int[Tensor, " N"],
    sampling: SamplingConfig,
) -> Draw:
    """Draw the next token of each row's completion.

    Args:
        logits: (N, V) logits of the next token.
        seeds: (N,) one seed for each row.
        position: The number of the token in its completion, >= 0; one for all rows or (N,).
        sampling: The sampling distribution, steps 1 to 5 above.

    Returns:
        The (N,) sampled ids and their (N,) logps, in nats.
    """
    probs = sampling_probs(logits, sampling)
    return draw(probs, uniforms(seeds, position))


def sampling_probs(logits: Float[Tensor, "N V"], sampling: SamplingConfig) -> Float[Tensor, "N V"]:
    """Return the distribution of steps 1 to 5 above under `sampling`; each row adds up to 1."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.temperature != 1.0:
        scores = scores / sampling.temperature
    if sampling.min_p > 0.0:
        probs = scores.softmax(dim=-1)
        unlikely = probs < sampling.min_p * probs.amax(dim=-1, keepdim=True)
        scores = scores.masked_fill(unlikely, -torch.inf)
    if 0 < sampling.top_k < scores.shape[-1]:
        smallest = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < smallest, -torch.inf)
    if sampling.top_p < 1.0:
        descending = scores.sort(dim=-1, descending=True).values
        probs = descending.softmax(dim=-1)
        likelier = probs.cumsum(dim=-1, dtype=torch.float64) - probs
        kept = (likelier < sampling.top_p).sum(dim=-1, keepdim=True)
        smallest = descending.gather(-1, kept.clamp(min=1) - 1)
        scores = scores.masked_fill(scores < smallest, -torch.inf)
    return scores.softmax(dim=-1)


def draw(probs: Float[Tensor, "N V"], uniform: Float[Tensor, " N"]) -> Draw:
    """Return the token at which each row's cumulative distribution first exceeds `uniform`.

    A token of probability 0 is never drawn. The sums are float64 and in two levels: over blocks of
    words, and over the words of one block. A float32 running sum over 150k words is off by 1e-5. A
    float64 one costs a tenth of a decoding step of a small model on a CPU.
    """
    num_words = probs.shape[-1]
    padded = torch.nn.functional.pad(probs, (0, -num_words % _BLOCK))
    blocks = padded.reshape(len(probs), -1, _BLOCK)
    block_mass = blocks.sum(dim=-1, dtype=torch.float64)
    block_cdf = block_mass.cumsum(dim=-1)
    target = uniform[:, None] * block_cdf[:, -1:]
    block = _first_above(block_cdf, target)
    words = blocks.gather(1, block[:, :, None].expand(-1, 1, _BLOCK)).squeeze(1)
    before = block_cdf.gather(-1, block) - block_mass.gather(-1, block)
    word = _first_above(words.cumsum(dim=-1, dtype=torch.float64), target - before)
    ids = (block * _BLOCK + word).clamp(max=num_words - 1)
    return Draw(ids=ids.squeeze(-1), logps=probs.gather(-1, ids).log().squeeze(-1))


def uniforms(seeds: Int[Tensor, " N"], position: int | Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return uniform float64 in [0, 1): output number `position` of SplitMix64 seeded by `seeds`.

        z = seed + (position + 1) * 0x9E3779B97F4A7C15
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;  z = (z ^ z >> 27) * 0x94D049BB133111EB
        u = ((z ^ z >> 31) >> 11) * 2**-53

    The arithmetic is modulo 2**64. Source: Steele, Lea, Flood, Fast splittable pseudorandom number
    generators, OOPSLA 2014.
    """
    if isinstance(position, int):
        z = seeds + _signed((position + 1) * 0x9E3779B97F4A7C15)
    else:
        z = seeds + (position + 1) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shift_right(z, 31)
    return _shift_right(z, 11).to(torch.float64) * 2.0**-53


def _first_above(cdf: Float[Tensor, "N W"], target: Float[Tensor, "N 1"]) -> Int[Tensor, "N 1"]:
    """Return the first index with cdf > target; rounding never picks an index without mass."""
    inside = torch.minimum(target.clamp(min=0.0), cdf[:, -1:] * (1.0 - 2.0**-52))
    return torch.searchsorted(cdf, inside, right=True).clamp(max=cdf.shape[-1] - 1)


def _shift_right(z: Int[Tensor, " N"], bits: int) -> Int[Tensor, " N"]:
    """Shift logically: int64's own `>>` copies the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """Return the int64 with the same 64 bits as `word` modulo 2**64."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word
