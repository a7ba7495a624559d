"""Sampling seeds and the uniforms made of them."""

from __future__ import annotations

import hashlib
import itertools
import struct

import pytest
import torch

from rlkit.generation import sample_seed
from rlkit.generation.sampling import uniforms


def test_seeds_are_pinned() -> None:
    # A changed value breaks the resumption of every run there is.
    assert sample_seed(0, 0, 0, 0) == 2937255182336915126
    assert sample_seed(1, 2, 3, 4) == 5368072594308893318
    assert sample_seed(2**31 - 1, 10**6, 10**9, 63) == 8784507231087433073


def test_a_prompt_that_comes_again_has_seeds_of_its_own() -> None:
    # By hashlib alone: five int64 instead of four.
    for place in ((0, 0, 0, 0, 1), (1, 2, 3, 4, 2)):
        key = struct.pack("<5q", *place)
        digest = hashlib.blake2b(key, digest_size=8, person=b"rlkit.sample").digest()
        assert sample_seed(*place) == int.from_bytes(digest, "little") >> 1
    assert sample_seed(1, 2, 3, 4, 0) == sample_seed(1, 2, 3, 4)
    seeds = {sample_seed(0, 0, p, s, o) for p in range(20) for s in range(16) for o in range(8)}
    assert len(seeds) == 20 * 16 * 8


def test_every_argument_counts_and_seeds_do_not_collide() -> None:
    places = list(itertools.product(range(10), range(10), range(20), range(10)))
    seeds = {sample_seed(*place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Each of the 63 bits is a fair coin: 20000 tosses, 5 standard deviations.
    for bit in range(63):
        ones = sum(seed >> bit & 1 for seed in seeds)
        assert abs(ones - 10_000) < 5 * 20_000**0.5 / 2, bit


def test_uniforms_are_splitmix64() -> None:
    # Published outputs of SplitMix64 seeded with 1234567 (rosettacode.org, "Splitmix64").
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    seed = torch.tensor([1234567])
    drawn = [uniforms(seed, position).item() for position in range(5)]
    assert drawn == [(word >> 11) / 2**53 for word in published]


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, sample_seed(0, 0, 0, 0)])
def test_uniforms_agree_with_unbounded_integers(seed: int) -> None:
    word = 2**64 - 1
    for position in (0, 1, 7, 100_000):
        z = seed + (position + 1) * 0x9E3779B97F4A7C15 & word
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & word
        z = (z ^ z >> 27) * 0x94D049BB133111EB & word
        z ^= z >> 31
        assert uniforms(torch.tensor([seed]), position).item() == (z >> 11) / 2**53


def test_uniforms_of_related_seeds_and_positions_are_uncorrelated() -> None:
    seeds = torch.tensor([sample_seed(0, 0, p, s) for p in range(64) for s in range(16)])
    table = torch.stack([uniforms(seeds, position) for position in range(64)])
    assert ((table >= 0) & (table < 1)).all()
    counts = torch.histc(table, bins=100, min=0.0, max=1.0)
    expected = table.numel() / 100
    chi_squared = ((counts - expected).square() / expected).sum().item()
    assert chi_squared < 99 + 5 * (2 * 99) ** 0.5
    centred = (table - 0.5) * 12**0.5
    for a, b in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        assert abs((a * b).mean().item()) < 5 / a.numel() ** 0.5
