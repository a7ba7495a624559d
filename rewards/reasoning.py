"""This module lets reasoning-gym judge answers to its own problems (`rlkit-lm[reasoning]`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rlkit.rewards.load import per_sample
from rlkit.rewards.tags import first_answer
from rlkit.runtime.distribution import lacks

if TYPE_CHECKING:
    from rlkit.types import Completion


@per_sample
def reasoning_gym(completion: Completion, *, column: str = "entry") -> float:
    """Return reasoning-gym's own score of the first `<answer></answer>`, in [0, 1].

    A completion without the tag earns 0.0.

    Raises:
        ValueError: The column holds no entry of reasoning-gym.
    """
    try:
        from reasoning_gym import get_score_answer_fn
    except ImportError as error:
        raise lacks("reasoning_gym", __name__) from error
    entry = completion.prompt.columns[column]
    if not isinstance(entry, Mapping) or "metadata" not in entry:
        raise ValueError(f"column {column} must hold an entry of reasoning-gym, got {entry!r:.60}")
    answer = first_answer(completion.text)
    if answer is None:
        return 0.0
    score = get_score_answer_fn(entry["metadata"]["source_dataset"])
    return float(score(answer, dict(entry)))
