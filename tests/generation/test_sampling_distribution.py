"""The sampling distribution and draws from it, against loops and transformers' own warpers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rlkit.generation.sampling import draw, sample, sampling_probs, uniforms
from rlkit.types import SamplingConfig


def config(**options: float) -> SamplingConfig:
    return SamplingConfig(max_completion_length=1)._replace(**options)  # type: ignore[arg-type]


def logits_of(rows: int, words: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(rows, words, generator=generator, dtype=dtype)


def oracle(z: list[float], sampling: SamplingConfig) -> list[float]:
    """The distribution by the definition at the top of rlkit.generation.sampling, one row."""
    weights = {n: math.exp(x / sampling.temperature) for n, x in enumerate(z)}
    likeliest = max(weights.values())
    weights = {n: w for n, w in weights.items() if w >= sampling.min_p * likeliest}
    ranked = sorted(weights, key=lambda n: -weights[n])
    if sampling.top_k:
        ranked = ranked[: sampling.top_k]
    total, reached, nucleus = sum(weights[n] for n in ranked), 0.0, []
    for n in ranked:
        if reached / total >= sampling.top_p:
            break
        nucleus.append(n)
        reached += weights[n]
    return [weights[n] / reached if n in nucleus else 0.0 for n in range(len(z))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.05},
        {"top_k": 1},
        {"top_k": 1000},
        {"top_p": 1e-9},
        {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 2.0, "top_p": 0.6, "min_p": 0.1},
    ],
)
def test_distribution_follows_its_definition(options: dict[str, float]) -> None:
    logits = logits_of(8, 50)
    probs = sampling_probs(logits, config(**options))
    for row, row_logits in zip(probs, logits.tolist(), strict=True):
        assert row.tolist() == pytest.approx(oracle(row_logits, config(**options)), abs=1e-14)


def test_distribution_agrees_with_transformers() -> None:
    logits = logits_of(16, 400)
    # Where the order of the steps does not matter: top_k then top_p, and min_p alone.
    ids: Any = torch.zeros(16, 1, dtype=torch.long)  # which the warpers ignore
    warped = TopPLogitsWarper(0.9)(ids, TopKLogitsWarper(40)(ids, logits / 0.8))
    ours = sampling_probs(logits, config(temperature=0.8, top_k=40, top_p=0.9))
    torch.testing.assert_close(ours, warped.softmax(-1), rtol=1e-12, atol=0)
    ours = sampling_probs(logits, config(min_p=0.03))
    torch.testing.assert_close(ours, MinPLogitsWarper(0.03)(ids, logits).softmax(-1))


def test_ties_at_the_edge_stay_whatever_their_order() -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0, 0.0, 1.0]])
    assert (sampling_probs(logits, config(top_k=2)) > 0).tolist() == [
        [True, True, True, False, True]
    ]
    assert (sampling_probs(logits, config(top_p=0.6)) > 0).tolist() == [
        [True, True, True, False, True]
    ]


def test_low_precision_logits_are_processed_in_float32() -> None:
    logits = logits_of(4, 1000).to(torch.bfloat16)
    probs = sampling_probs(logits, config(temperature=0.9))
    assert probs.dtype == torch.float32
    exact = (logits.double() / 0.9).softmax(-1)
    torch.testing.assert_close(probs.double(), exact, rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("words", [7, 128, 129, 1000])
def test_draw_inverts_the_cumulative_distribution(words: int) -> None:
    probs = sampling_probs(logits_of(40, words), config(top_k=words // 2 + 1))
    uniform = uniforms(torch.arange(40), 3)
    drawn = draw(probs, uniform)
    for n in range(40):
        reached, expected = 0.0, -1
        for word, p in enumerate(probs[n].tolist()):
            reached += p
            if reached > uniform[n].item():
                expected = word
                break
        assert drawn.ids[n].item() == expected
        assert drawn.logps[n].item() == pytest.approx(math.log(probs[n, expected]), abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_words_without_mass_are_never_drawn(dtype: torch.dtype) -> None:
    edges = torch.tensor([0.0, 2.0**-53, 0.5 - 2.0**-53, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    for words in (3, 128, 300, 1000):
        for kept in ([1], [words - 2], [0, words - 1], [1, words // 2], [127 % words, 128 % words]):
            probs = torch.zeros(len(edges), words, dtype=dtype)
            probs[:, kept] = 1 / len(set(kept))
            drawn = draw(probs, edges)
            assert set(drawn.ids.tolist()) <= set(kept)
            assert set(drawn.ids.tolist()) == set(kept)  # both halves are reached
            assert torch.isfinite(drawn.logps).all()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "top_p": 0.9}])
def test_frequencies_follow_the_distribution(options: dict[str, float]) -> None:
    num_draws, words = 40_000, 200
    logits = logits_of(1, words, dtype=torch.float32).expand(num_draws, -1)
    drawn = sample(logits, torch.arange(num_draws) * 977, 11, config(**options))
    expected = sampling_probs(logits[:1], config(**options))[0].double() * num_draws
    counts = torch.bincount(drawn.ids, minlength=words).double()
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    chi_squared = ((counts - expected).square() / expected)[common].sum().item()
    freedom = int(common.sum())
    assert chi_squared < freedom + 5 * (2 * freedom) ** 0.5


def test_sampling_logps_are_log_softmax_without_truncation_and_renormalised_with_it() -> None:
    logits = logits_of(64, 500)
    seeds = torch.arange(64)
    plain = sample(logits, seeds, 0, config(temperature=0.7))
    expected = (logits / 0.7).log_softmax(-1).gather(-1, plain.ids[:, None])[:, 0]
    torch.testing.assert_close(plain.logps, expected, rtol=0, atol=1e-12)
    cut = sample(logits, seeds, 0, config(top_k=3))
    top = logits.topk(3, dim=-1).values.logsumexp(-1)
    expected = logits.gather(-1, cut.ids[:, None])[:, 0] - top
    torch.testing.assert_close(cut.logps, expected, rtol=0, atol=1e-12)


def test_a_row_does_not_depend_on_the_others() -> None:
    logits = logits_of(33, 1000, dtype=torch.float32)
    seeds = torch.arange(33) + 5
    options = config(top_p=0.95, temperature=1.1)
    together = sample(logits, seeds, 2, options)
    for n in range(33):
        alone = sample(logits[n : n + 1], seeds[n : n + 1], 2, options)
        assert alone.ids.item() == together.ids[n].item()
        assert alone.logps.item() == together.logps[n].item()


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 4}, {"min_p": 0.1}])
def test_rows_without_a_distribution_are_marked(options: dict[str, float]) -> None:
    logits = logits_of(4, 300, dtype=torch.float32)
    logits[1, 7] = torch.nan
    logits[2] = -torch.inf
    logits[3, 5] = torch.inf
    drawn = sample(logits, torch.arange(4), 0, config(**options))
    assert torch.isfinite(drawn.logps).tolist() == [True, False, False, False]
    assert ((drawn.ids >= 0) & (drawn.ids < 300)).all()
