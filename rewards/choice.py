"""This module rewards the right letter of a multiple choice."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rlkit.rewards.load import per_sample
from rlkit.rewards.tags import first_answer

if TYPE_CHECKING:
    from rlkit.types import Completion

_BOXED = re.compile(r"\\boxed\{\s*(?:\\text(?:bf|rm)?\{)?\s*\(?([A-Za-z])\)?[^A-Za-z]*\}")
_STATED = re.compile(
    r"(?:answer|choice|option)(?:\s*(?:is|:|=))*\s*(?:option\s*)?[\*\"'`]*\(?([A-Za-z])\)?(?![A-Za-z'])",
    re.IGNORECASE,
)
_ALONE = re.compile(r"(?:^|\n)[\s\*\"'`]*\(?([A-Za-z])\)?[\s\*\"'`]*[.:)]?\s*(?=\n|$)")
_LEADING = re.compile(r"\s*[\*\"'`]*\(?([A-Za-z])\)?[\*\"'`]*[.:)](?:\s|$)")


@per_sample
def choice(
    completion: Completion, *, column: str = "answer", letters: str = "ABCDE"
) -> float | None:
    """Return 1.0 when the letter that the text chooses is the prompt's `column`, else 0.0.

    The letter inside the first `<answer></answer>` counts, else that of the last `\\boxed{}`.
    Without these it is the one after the last "answer is", or alone on a line, or at the start, as
    in "B. Paris". The letter A inside a sentence is an article and no choice.

    Args:
        completion: The sample.
        column: The column with the right letter, or its number from 0 on.
        letters: The letters that can be chosen, in order.

    Returns:
        1.0 or 0.0; None when the column holds null.
    """
    gold = completion.prompt.columns[column]
    if gold is None:
        return None
    if isinstance(gold, int) and not isinstance(gold, bool):
        if not 0 <= gold < len(letters):
            raise ValueError(f"column {column} must be in [0, {len(letters)}), got {gold}")
        gold = letters[gold]
    wanted = str(gold).strip().strip("().").upper()
    if len(wanted) != 1 or wanted not in letters.upper():
        raise ValueError(f"column {column} must be one of {letters}, got {gold!r:.60}")
    return float(chosen_letter(completion.text, letters=letters) == wanted)


def chosen_letter(text: str, *, letters: str) -> str | None:
    """Return the letter that `text` chooses, in upper case; None when it chooses none."""
    tagged = first_answer(text)
    places = [
        _BOXED.findall(text)[-1:],
        [] if tagged is None else _of_tag(tagged),
        _STATED.findall(text)[-1:],
        _ALONE.findall(text)[-1:],
        _LEADING.findall(text)[:1] if _LEADING.match(text) else [],
    ]
    if tagged is not None:  # a tag is a commitment: what else the text says does not count
        places = places[1:2]
    for found in places:
        allowed = [letter.upper() for letter in found if letter.upper() in letters.upper()]
        if allowed:
            return str(allowed[-1])
    return None


def _of_tag(content: str) -> list[str]:
    bare = content.strip(" \n\t*\"'`().")
    if len(bare) == 1:
        return [bare]
    match = _LEADING.match(content)
    return [match[1]] if match else []
