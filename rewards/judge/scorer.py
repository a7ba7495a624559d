"""This module is a judge as a reward function: the share of wins in a group, or a level."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rlkit.rewards.config import RewardSpec
from rlkit.rewards.judge.asking import Asking
from rlkit.rewards.judge.options import JudgeMode, Opponents, judge_options, needs_column
from rlkit.rewards.judge.prompts import judge_prompt, request_text, shows_reference
from rlkit.rewards.judge.questions import (
    LevelQuestion,
    LevelVerdict,
    PairQuestion,
    PairVerdict,
    compare,
    grade,
)
from rlkit.rewards.scorers import BatchReplies
from rlkit.rewards.wire import Failure, Reply

if TYPE_CHECKING:
    from rlkit.types import Completion

_PROBE = ("What is the capital of France?", "Paris.", "I do not know.")

Problem = tuple[int, Failure, str]


class _Duel(NamedTuple):
    """This is a pair of a group; `second` is None when the opponent is the reference."""

    group: int
    first: int
    second: int | None


class JudgeScorer:
    """A judge scores every completion of a batch; a failed judgment gives no value, ever."""

    def __init__(self, spec: RewardSpec) -> None:
        """Judge by `spec.options`; raises ValueError with one line when they break a rule."""
        key = f"reward.functions.{spec.name}.options"
        self.options = judge_options(spec.name, spec.options)
        self.prompt = judge_prompt(spec.name, self.options)
        self.asking = Asking(key, self.options)
        self._needs_column = needs_column(self.options) or shows_reference(self.prompt)

    def check(self) -> None:
        """Ask one easy question, so that a dead, closed or talkative judge is found at once.

        Raises ValueError with one line.
        """
        self.asking.check()
        if self.options.cache_only:
            return
        request, good, bad = _PROBE
        found: PairVerdict | LevelVerdict
        if self.options.mode is JudgeMode.pairwise:
            (found,) = compare(self.asking, self.prompt, [PairQuestion(request, good, bad, good)])
        else:
            (found,) = grade(self.asking, self.prompt, [LevelQuestion(request, good, good)])
        if found.failure is not None:
            raise ValueError(
                f"{self.asking.key}.model must give a verdict, got {self.options.model} "
                f"({found.failure.value}): {found.message}"
            )

    def start(self) -> None:
        """Be ready: a checked judge is."""

    def score(self, groups: Sequence[Sequence[Completion]], /) -> BatchReplies:
        """Return the share of wins, or the level, of each completion.

        A sample of whose comparisons fewer than half were judged has failed. None stands for a
        completion without an opponent, and for a row whose reference is null.
        """
        start, before = time.perf_counter(), self.asking.spent()
        if self.options.mode is JudgeMode.pairwise:
            replies, shares, cached = self._duels(groups)
        else:
            replies, shares, cached = self._levels(groups)
        seconds = (time.perf_counter() - start) / max(1, len(groups))
        after = self.asking.spent()
        counts = {
            "calls": float(after.calls - before.calls),
            "cached": float(cached),
            "tokens": float(after.tokens - before.tokens),
        }
        timed = [reply._replace(seconds=seconds) for reply in replies]
        return BatchReplies(timed, counts, shares)

    def keep_in(self, run_dir: Path, /) -> None:
        """Keep the replies in the run's folder."""
        self.asking.keep_in(run_dir)

    def close(self) -> None:
        """Close the store."""
        self.asking.close()

    def _reference(self, completion: Completion) -> str | None:
        """Return the row's reference, "" where none is needed, None where it is null."""
        if not self._needs_column:
            return ""
        value = completion.prompt.columns.get(self.options.column)
        return str(value) if isinstance(value, str | int | float) else None

    def _duels(
        self, groups: Sequence[Sequence[Completion]]
    ) -> tuple[list[Reply], dict[str, tuple[float, float]], int]:
        duels = [duel for g, group in enumerate(groups) for duel in self._duels_of(g, group)]
        questions = [self._question(groups[duel.group], duel) for duel in duels]
        verdicts = compare(self.asking, self.prompt, questions)
        wins: list[list[list[float]]] = [[[] for _ in group] for group in groups]
        failed: list[list[list[PairVerdict]]] = [[[] for _ in group] for group in groups]
        for duel, verdict in zip(duels, verdicts, strict=True):
            sides = [(duel.first, verdict.p_first)]
            if duel.second is not None:
                p = verdict.p_first
                sides.append((duel.second, None if p is None else 1.0 - p))
            for sample, p in sides:
                if p is None:
                    failed[duel.group][sample].append(verdict)
                else:
                    wins[duel.group][sample].append(p)
        replies = [_reply(*rows) for rows in zip(wins, failed, strict=True)]
        return replies, _bias(verdicts), sum(verdict.cached for verdict in verdicts)

    def _duels_of(self, g: int, group: Sequence[Completion]) -> list[_Duel]:
        if not group or self._reference(group[0]) is None:
            return []
        if self.options.opponents is Opponents.column:
            return [_Duel(g, i, None) for i in range(len(group))]
        return [_Duel(g, i, j) for i, j in combinations(range(len(group)), 2)]

    def _question(self, group: Sequence[Completion], duel: _Duel) -> PairQuestion:
        reference = self._reference(group[0]) or ""
        second = reference if duel.second is None else group[duel.second].text
        request = request_text(group[0].prompt)
        return PairQuestion(request, group[duel.first].text, second, reference)

    def _levels(
        self, groups: Sequence[Sequence[Completion]]
    ) -> tuple[list[Reply], dict[str, tuple[float, float]], int]:
        places = [
            (g, i)
            for g, group in enumerate(groups)
            for i in range(len(group))
            if self._reference(group[0]) is not None
        ]
        questions = [
            LevelQuestion(
                request_text(groups[g][i].prompt),
                groups[g][i].text,
                self._reference(groups[g][i]) or "",
            )
            for g, i in places
        ]
        verdicts = grade(self.asking, self.prompt, questions)
        by_place = dict(zip(places, verdicts, strict=True))
        replies = []
        for g, group in enumerate(groups):
            found = [by_place.get((g, i)) for i in range(len(group))]
            problems = [
                (i, v.failure, v.message)
                for i, v in enumerate(found)
                if v and v.failure is not None
            ]
            values = [None if v is None else v.value for v in found]
            replies.append(Reply(0.0, values, problems))
        return replies, {}, sum(verdict.cached for verdict in verdicts)


def _reply(wins: Sequence[Sequence[float]], failed: Sequence[Sequence[PairVerdict]]) -> Reply:
    """Return each sample's mean probability of winning; too few judged comparisons are a failure.

    With all comparisons of a group judged, the shares of the group have the mean .5.
    """
    values: list[float | None] = []
    problems: list[Problem] = []
    for sample, (won, lost) in enumerate(zip(wins, failed, strict=True)):
        if lost and len(won) < len(lost):
            first = lost[0]
            problems.append((sample, first.failure or Failure.no_verdict, first.message))
            values.append(None)
        else:
            values.append(sum(won) / len(won) if won else None)
    return Reply(0.0, values, problems)


def _bias(verdicts: Sequence[PairVerdict]) -> dict[str, tuple[float, float]]:
    """Return how often slot A wins and how often the other order changes the verdict."""
    judged = [v for v in verdicts if v.asked and v.p_first is not None]
    slots = [p for v in judged for p in v.in_slot_a if p is not None]
    asked = [v for v in verdicts if v.asked]
    return {
        "first_slot": (sum(slots), float(len(slots))),
        "flipped": (float(sum(v.flipped for v in judged)), float(len(judged))),
        "failed": (float(len(asked) - len(judged)), float(len(asked))),
    }
