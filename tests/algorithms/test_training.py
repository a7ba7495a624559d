"""Every preset learns from samples; Unsloth's run without detach does not move at all."""

from __future__ import annotations

import pytest
from oracles import options

from rlkit.oracle import targets
from rlkit.oracle.compose import composed
from rlkit.oracle.training import task, train

START = float(targets.expected_reward(task())(task().table))


# Variants of unsloth_2025 with a policy gradient of 0: their KL terms rest at the reference.
DEAD = [f"unsloth_2025_{name}" for name in ("full_no_detach", "log_weighted", "no_detach")]
IMITATES = "sft"  # it learns from completions that a table does not give; see test_sft.py
SAMPLES = [name for name in options("algorithm") if name not in (*DEAD, IMITATES)]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_preset_learns(name: str) -> None:
    """From 0.131 to more than twice that in 20 steps of 32 completions, two updates each."""
    result = train(composed(f"algorithm={name}"), seed=0, steps=20, updates=2)
    assert result.reward > 2 * START
    assert result.kl > 0.01


@pytest.mark.parametrize("name", DEAD)
def test_without_a_ratio_the_policy_stays_at_the_reference(name: str) -> None:
    result = train(composed(f"algorithm={name}"), seed=0, steps=20)
    assert result.reward == START
    assert result.kl == 0.0
