"""pass@k and maj@n against enumeration of all subsets, and against what was counted by hand."""

from __future__ import annotations

import itertools
import math

import pytest

from rlkit.tracking.repeated import majority, pass_at_k, repeated_metrics


@pytest.mark.parametrize("num_samples", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(num_samples: int) -> None:
    for num_right in range(num_samples + 1):
        samples = [1] * num_right + [0] * (num_samples - num_right)
        for k in range(1, num_samples + 1):
            subsets = list(itertools.combinations(samples, k))
            share = sum(map(any, subsets)) / len(subsets)
            assert pass_at_k(num_samples, num_right, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    """Over all outcomes of 6 independent samples its mean is 1 - (1 - p)^k, exactly."""
    p, n = 0.3, 6
    for k in range(1, n + 1):
        mean = math.fsum(
            math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1)
        )
        assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_pass_at_k_refuses_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match=r"k must be in \[1, 4\]"):
        pass_at_k(4, 2, 5)


@pytest.mark.parametrize(
    ("values", "answers", "expected"),
    [
        ([1, 0, 1], ["7", "8", "7"], 1.0),
        ([0, 1, 0], ["8", "7", "8"], 0.0),
        ([1, 0], ["7", "8"], 0.5),  # a tie shares
        ([1, 0, 0], ["7", "8", "9"], 1 / 3),
        ([1, 0, 0], ["7", None, None], 1.0),  # no answer, no vote
        ([0, 0], [None, None], 0.0),
    ],
)
def test_majority(values: list[float], answers: list[str | None], expected: float) -> None:
    assert majority(values, answers) == pytest.approx(expected)


def test_the_metrics_of_two_prompts() -> None:
    """4 samples each, 1 and 4 right: pass@2 is (1 - 3/6, 1), maj@4 is (0, 1)."""
    values = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    answers: list[list[str | None]] = [["1", "2", "2", None], ["3", "3", "3", "3"]]
    found = repeated_metrics(values, answers)
    assert {k: v for k, v in found.items() if "/" not in k} == {
        "pass@2": 0.75,
        "pass@4": 1.0,
        "maj@4": 0.5,
    }
    assert (found["pass@2/low"], found["pass@2/high"]) == (0.5, 1.0)
    assert repeated_metrics([[1.0], [0.0]], None) == {}
    assert "maj@3" not in repeated_metrics([[1.0, 0.0, 0.0]], None)
    assert set(repeated_metrics([[1.0, 0.0, 0.0]], None)) == {
        f"pass@{k}{end}" for k in (2, 3) for end in ("", "/low", "/high")
    }
