"""F8: formulas that math-verify takes for ever to parse or to compare, and random ones."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.faults.row import Row
from rlkit.rewards import Failure, RewardConfig, RewardSpec
from rlkit.rewards.pool import RewardPool
from rlkit.types import Completion, FinishReason, Prompt

HANGING = (
    "9^{9^{9^{9}}}",
    r"\sum_{k=1}^{10^9}\sin(k^2)",
    r"\int_0^1 e^{x^{x^x}}dx",
    "10^{10^8}",
    "(" * 23 + "x" + ")" * 23,
    "100000!",
)
"""These were seen to hang math-verify 0.9.0."""
_DEADLINE_S = 4.0
_DEPTH = 5


def run(count: int, folder: Path) -> Row:
    """Score `count` formulas one by one: those that are known to hang, then random ones.

    Survived is one that is scored, or counted as a failure, within the deadline and a second.
    """
    draw = random.Random(8)
    formulas = [*HANGING, *(_random(draw, _DEPTH) for _ in range(count))][:count]
    config = RewardConfig(workers=1, timeout_s=_DEADLINE_S)
    specs = [RewardSpec("math", "math", 1.0, {"alarm_s": 1})]
    survived, slowest, late, notes = 0, 0.0, 0, list[str]()
    with RewardPool(specs, config) as pool:
        pool.start()
        for formula in formulas:
            scores = pool.score([[_sample(formula)]])
            seconds = scores.report.seconds
            slowest = max(slowest, seconds)
            late += scores.report.failures.get(("math", Failure.timeout), 0)
            good = seconds <= _DEADLINE_S + 1.0
            survived += good
            notes += [] if good else [f"{formula[:40]}: {seconds:.1f} s"]
        # The pool must be as good as new.
        right = pool.score([[_sample("42")]]).rewards == [[1.0]]
    survived = survived if right else 0
    said = "; ".join(notes[:3]) or "none hangs"
    known = min(count, len(HANGING))
    note = (
        f"the {known} known ones and {count - known} random ones; slowest {slowest:.1f} s with a "
        f"deadline of {_DEADLINE_S:.0f} s, {late} counted as timeout; {said}"
    )
    return Row("F8 formulas for math-verify", count, survived, count - survived, note)


def _sample(formula: str) -> Completion:
    prompt = Prompt(index=0, ids=(1,), text="q", columns={"answer": "42"})
    return Completion(prompt=prompt, text=f"${formula}$", ids=(1,), finish_reason=FinishReason.stop)


def _random(draw: random.Random, depth: int) -> str:
    """Return a random formula of towers, sums, roots, factorials, matrices and stray braces."""
    if depth == 0 or draw.random() < 0.15:
        return draw.choice(["x", "9", "10^9", "0", "-1", "1e999", r"\pi", r"\infty", "i", "7" * 50])
    one, other = (_random(draw, depth - 1) for _ in range(2))
    return draw.choice(
        [
            *(
                f"{one}^{{{other}}}",
                f"\\frac{{{one}}}{{{other}}}",
                f"({one})!",
                f"({one})({other})",
            ),
            *(f"\\sqrt[{one}]{{{other}}}", f"\\sum_{{k=1}}^{{{one}}}{{{other}}}", f"({one}"),
            *(f"\\int_0^{{{one}}}{{{other}}}dx", f"\\log_{{{one}}}({other})", f"{one}={other}"),
            *(f"\\begin{{pmatrix}}{one}&{other}\\end{{pmatrix}}", f"{one},{other}", f"{one}}}"),
            *(f"\\sin({one})+{other}", f"\\lim_{{x\\to{one}}}{other}", f"\\boxed{{{one}}}"),
        ]
    )
