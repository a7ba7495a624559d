"""The completions that a task gives for imitation: which text, which tokens, and is it usable?

A target ends as a sampled completion ends: with the model's end token, or with a stop string of the
task. Its tokens are those of the text alone, as the prompt's are, so that both meet where sampling
begins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rlkit.rewards.numbers import plain
from rlkit.tasks.base import Example, Split, Task
from rlkit.tasks.config import BadRows, OverlongTargets, TaskConfig
from rlkit.tasks.data import DROP_HINT, several
from rlkit.tasks.render import place
from rlkit.tasks.survey import Usable
from rlkit.types import FinishReason

_BATCH = 512
"""Texts tokenised by one call, which spreads them over the processor's cores."""
_FIELD = re.compile(r"\{([^{}]+)\}")


class TargetIds(NamedTuple):
    """These are the tokens of one target."""

    ids: tuple[int, ...]
    finish_reason: FinishReason
    """`length` when the text was cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The rule that makes a target of an example."""

    text: Callable[[Example], str]
    """Raises ValueError where an example has none."""
    tokenizer: PreTrainedTokenizerBase
    end_id: int | None
    """The token that ends a completion; None where the model has none."""
    stop: tuple[str, ...]
    """Strings that end a completion; a text that ends with one gets no end token."""
    max_length: int
    """Most tokens, >= 1."""

    def of(self, example: Example, *, index: int) -> TargetIds:
        """Return the target of an example; one that is too long is cut and has no end.

        Raises ValueError naming the row that has no usable text.
        """
        (ids,) = self.encoded([self.checked(example, index=index)])
        if len(ids) <= self.max_length:
            return TargetIds(ids, FinishReason.stop)
        return TargetIds(ids[: self.max_length], FinishReason.length)

    def checked(self, example: Example, *, index: int) -> str:
        """Return the text of an example's target, which holds something and can be sampled."""
        where = place(example, index)
        try:
            text = self.text(example)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if not text.strip():
            raise ValueError(f"{where}: the target must be text, got nothing")
        early = [s for s in self.stop if s in text[: len(text) - 1 if text.endswith(s) else None]]
        if early:
            raise ValueError(
                f"{where}: the target must end where the stop string {early[0]!r} is, got more "
                f"after it: {text!r:.60}"
            )
        return text

    def encoded(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of each text, its end included, at whatever length."""
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [
            (*ids, *self._end(text, ids)) for text, ids in zip(texts, map(tuple, rows), strict=True)
        ]

    def _end(self, text: str, ids: tuple[int, ...]) -> tuple[int, ...]:
        ended = text.endswith(self.stop) if self.stop else False
        if self.end_id is None or ended or ids[-1:] == (self.end_id,):
            return ()
        return (self.end_id,)


def text_of(task: Task, config: TaskConfig) -> Callable[[Example], str]:
    """Return the text to imitate: what `task.target` says, else the task's own, else the gold one.

    Raises ValueError when there is none of these.
    """
    if config.target:
        return lambda example: _filled(config.target, example)
    own = task.target or task.gold_completion
    if own is None:
        raise ValueError(
            "task.target must name the column with the completions to imitate, or a text with "
            f"{{column}} in it, got none: task {task.name} gives no completions"
        )
    return own


def usable_targets(
    split: Split, targets: Targets, *, overlong: OverlongTargets, bad_rows: BadRows
) -> Usable:
    """Return the rows of a finite split that have a usable target.

    Args:
        split: The rows.
        targets: The rule that makes targets.
        overlong: What becomes of targets over `targets.max_length` tokens.
        bad_rows: What becomes of rows without a usable text.

    Returns:
        The split without the rows that are dropped, and a note for each kind.

    Raises:
        ValueError: A row cannot be used and may not be dropped, or nothing is left.
    """
    size, name = split.size or 0, split.name.value
    lengths, problems = _measure(split, targets)
    if problems and bad_rows is BadRows.error:
        shown = several(list(problems.values()))
        raise ValueError(
            f"{len(problems)} of {size} {name} rows have no target: {shown}{DROP_HINT}"
        )
    most = targets.max_length
    long = [i for i, length in lengths.items() if length > most]
    if long and overlong is OverlongTargets.error:
        raise ValueError(
            f"task.max_completion_length must be >= {max(lengths.values())} for the targets of "
            f"{len(long)} of {size} {name} rows, got {most}: {_named(split, lengths, long)} "
            "(or set task.overlong_targets=drop or truncate)"
        )
    notes = []
    if problems:
        shown = several(list(problems.values()))
        notes.append(f"{len(problems)} of {size} {name} rows left out: {shown}")
    dropped = set(problems)
    if long:
        drop = overlong is OverlongTargets.drop
        dropped |= set(long) if drop else set()
        done = "left out" if drop else "cut on the right, without an end"
        shown = _named(split, lengths, long)
        notes.append(f"{len(long)} of {size} {name} targets over {most} tokens {done}: {shown}")
    kept = [i for i in range(size) if i not in dropped]
    if not kept:
        raise ValueError(
            f"task.max_completion_length must leave {name} targets, got {most}: all {size} are "
            "longer or missing"
        )
    if not dropped:
        return Usable(split, notes)
    return Usable(split._replace(get=lambda i: split.get(kept[i]), size=len(kept)), notes)


def _measure(split: Split, targets: Targets) -> tuple[dict[int, int], dict[int, str]]:
    """Return the length of each row's target, and why a row has none."""
    lengths: dict[int, int] = {}
    problems: dict[int, str] = {}
    for first in range(0, split.size or 0, _BATCH):
        texts: dict[int, str] = {}
        for index in range(first, min(first + _BATCH, split.size or 0)):
            try:
                texts[index] = targets.checked(split.get(index), index=index)
            except ValueError as error:
                problems[index] = str(error)
        rows = targets.encoded(list(texts.values())) if texts else []
        lengths |= dict(zip(texts, map(len, rows), strict=True))
    return lengths, problems


def _named(split: Split, lengths: dict[int, int], indices: Sequence[int]) -> str:
    return several([f"{place(split.get(i), i)} has {lengths[i]}" for i in indices])


def _filled(pattern: str, example: Example) -> str:
    """Return a column by its name, or `pattern` with each {column} in place, in one pass."""
    if "{" not in pattern:
        return _column(pattern, example)
    return _FIELD.sub(lambda match: _column(match[1], example), pattern)


def _column(name: str, example: Example) -> str:
    if name not in example.columns:
        known = ", ".join(example.columns) or "none"
        raise ValueError(f"task.target must name columns of the task ({known}), got {name}")
    value = example.columns[name]
    if value is None:
        raise ValueError(f"column {name} must be text, got null")
    return plain(value)
