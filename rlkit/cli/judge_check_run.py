"""This module does the work of `rlkit judge-check`."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlkit.config import Config
from rlkit.launch.composing import register
from rlkit.launch.preflight import preflight
from rlkit.reward_models.pairs import PreferencePair, read_pairs
from rlkit.rewards import RewardSpec, reward_specs
from rlkit.rewards.judge.check import GoldPair, JudgeReport, check_judge, report_lines
from rlkit.rewards.judge.options import JudgeMode, Opponents
from rlkit.rewards.judge.scorer import JudgeScorer
from rlkit.tasks import Task, build_task
from rlkit.tasks.base import Example


class NotGoodEnough(RuntimeError):
    """The judge is below a threshold; the message is one line."""


def lines(
    overrides: Sequence[str],
    *,
    pairs: str,
    count: float,
    least_agreement: float,
    least_consistency: float,
) -> Iterator[str]:
    """Yield the report of each judge of the run that `overrides` stand for.

    Args:
        overrides: Options of the run.
        pairs: A file of preferences; empty = gold answers of the task.
        count: Most pairs to ask about.
        least_agreement: Least share of pairs on which the judge agrees with gold.
        least_consistency: Least share of pairs with the same verdict in both orders.

    Raises:
        ValueError: An option breaks a rule, or the endpoint does not answer.
        NotGoodEnough: A judge is below a threshold; its report came before.
    """
    register()
    (config, *others) = preflight(overrides)
    if others:
        raise ValueError("rlkit judge-check takes one run, not a sweep")
    task = build_task(config.task)
    judges = [spec for spec in reward_specs(config.reward, task.rewards) if spec.fn == "judge"]
    if not judges:
        raise ValueError("reward.functions must hold a judge (reward=judge), got none")
    gold = _gold_pairs(pairs, task, round(count))
    for spec in judges:
        scorer = JudgeScorer(spec)
        try:
            scorer.check()
            yield from _about(spec, scorer, len(gold), pairs or f"task {task.name}")
            mode = scorer.options.mode
            report = check_judge(scorer.asking, scorer.prompt, mode, gold)
        finally:
            scorer.close()
        yield from (f"  {line}" for line in report_lines(report))
        yield from (f"  {line}" for line in _cost_of_run(config, scorer, report))
        _require(spec, report, least_agreement, least_consistency)


def _about(spec: RewardSpec, scorer: JudgeScorer, count: int, source: str) -> Iterator[str]:
    options, prompt = scorer.options, scorer.prompt
    digest = hashlib.sha256("\0".join(prompt).encode()).hexdigest()[:12]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    yield (
        f"judge {spec.name}: {options.model} at {options.url}, {options.mode.value}, verdicts from "
        f"{options.verdicts.value}, prompt {digest}, {today}"
    )
    yield f"{count} pairs with a known answer, from {source}"


def _cost_of_run(config: Config, scorer: JudgeScorer, report: JudgeReport) -> Iterator[str]:
    """Say how many calls the run would make at most, and about how many tokens they would take."""
    size, evaluation = config.algorithm.group_size, config.evaluation
    training = config.steps * config.prompts_per_step * _calls(scorer, size)
    times = 2 + ((config.steps - 1) // evaluation.every if evaluation.every else 0)
    held_out = times * evaluation.num_prompts * _calls(scorer, evaluation.samples_per_prompt)
    calls = training + held_out
    text = f"{'the run':<30}at most {calls} calls ({training} in training)"
    if report.spent.calls:
        text += f", about {calls * report.spent.tokens // report.spent.calls} tokens"
    yield text


def _calls(scorer: JudgeScorer, group_size: int) -> int:
    if scorer.options.mode is JudgeMode.pointwise:
        return group_size
    if scorer.options.opponents is Opponents.column:
        return 2 * group_size
    return group_size * (group_size - 1)


def _require(
    spec: RewardSpec, report: JudgeReport, least_agreement: float, least_consistency: float
) -> None:
    if report.failed.total == report.failed.hits:
        raise NotGoodEnough(f"judge {spec.name} must give verdicts, got none: {report.failure}")
    if report.agreement.share < least_agreement:
        raise NotGoodEnough(
            f"judge {spec.name} must agree with gold on >= {least_agreement:g} of the pairs, got "
            f"{report.agreement.share:.2f} (least_agreement)"
        )
    if report.consistent is not None and report.consistent.share < least_consistency:
        raise NotGoodEnough(
            f"judge {spec.name} must say the same in both orders on >= {least_consistency:g} of "
            f"the pairs, got {report.consistent.share:.2f} (least_consistency)"
        )


def _gold_pairs(path: str, task: Task, count: int) -> list[GoldPair]:
    if path:
        found = read_pairs("pairs", Path(path).expanduser())[:count]
        return [GoldPair(_text(pair), pair.chosen, pair.rejected) for pair in found]
    gold = task.gold_completion
    if gold is None:
        raise ValueError(f"pairs must name a file: task {task.name} knows no gold answers")
    size = min(count + 1, task.eval.size or count + 1)
    rows = [task.eval.get(i) for i in range(size)]
    texts = [gold(row) for row in rows]
    pairs = [
        GoldPair(_request(row), text, other)
        for row, text, other in zip(rows, texts, [*texts[1:], texts[0]], strict=True)
        if text != other
    ]
    if not pairs:
        raise ValueError(f"pairs must name a file: the gold answers of task {task.name} are equal")
    return pairs[:count]


def _request(row: Example) -> str:
    if isinstance(row.prompt, str):
        return row.prompt
    return "\n\n".join(message.content for message in row.prompt)


def _text(pair: PreferencePair) -> str:
    if isinstance(pair.prompt, str):
        return pair.prompt
    return "\n\n".join(str(turn.get("content", "")) for turn in pair.prompt)
