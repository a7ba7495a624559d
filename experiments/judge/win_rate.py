"""Let judges compare what runs said before and after training, prompt by prompt.

    python experiments/judge/win_rate.py URL [--base RUN] RUN...

The opponent is what each run said before training; with --base it is what another run said before
its training. All evaluations must have the same prompts and seeds. The interval is Student's over
prompts, and over runs for the mean of several.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from scipy import stats

from rlkit.rewards import RewardSpec
from rlkit.rewards.judge.questions import PairQuestion, compare
from rlkit.rewards.judge.scorer import JudgeScorer
from rlkit.tracking.base import SampleRow
from rlkit.tracking.completions import eval_path, read_samples

_POST = "Summarise this post"


def request_of(row: SampleRow) -> str:
    """Return the post's request out of the rendered prompt."""
    text = row.prompt[row.prompt.index(_POST) :]
    return text[: text.index("What should I do?") + len("What should I do?")]


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95% interval."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * std / math.sqrt(len(values))
    return mean, half


def wins(scorer: JudgeScorer, run: Path, base: Path) -> list[float]:
    """Return the mean probability, for each prompt, that the trained policy's answer is better."""
    after = max(run.glob("completions/eval-after-*.parquet"))
    before = read_samples(eval_path(base, "before", 0))
    pairs = list(zip(before, read_samples(after), strict=True))
    assert all(b.prompt == a.prompt for b, a in pairs), f"{base} was asked other prompts than {run}"
    questions = [PairQuestion(request_of(b), a.completion, b.completion) for b, a in pairs]
    by_prompt: dict[int, list[float]] = {}
    for (b, _), verdict in zip(
        pairs, compare(scorer.asking, scorer.prompt, questions), strict=True
    ):
        assert verdict.p_first is not None, verdict.message
        by_prompt.setdefault(b.prompt_index, []).append(verdict.p_first)
    return [math.fsum(found) / len(found) for found in by_prompt.values()]


def main(url: str, runs: list[Path], base: Path | None) -> None:
    """Print a line for each judge and run, and one for all runs."""
    for model in ("coverage", "overlap"):
        scorer = JudgeScorer(RewardSpec(model, "judge", 1.0, {"url": url, "model": model}))
        means = []
        for run in runs:
            mean, half = interval(wins(scorer, run, base or run))
            means.append(mean)
            print(f"{model:<10} {run.name:<12} {mean:.3f} +- {half:.3f}")
        mean, half = interval(means)
        print(f"{model:<10} {len(runs)} runs       {mean:.3f} +- {half:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--base", type=Path)
    options = parser.parse_args()
    main(options.url, options.runs, options.base)
