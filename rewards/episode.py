"""This module makes an environment's pay a reward like any other: weighted, logged, combined."""

from __future__ import annotations

from rlkit.rewards.load import per_sample
from rlkit.rewards.wire import WireCompletion


@per_sample
def environment(completion: WireCompletion) -> float | None:
    """Return the sum of what the environment paid for the turns; None without an environment.

    Raises RuntimeError for an episode whose environment failed: that is no answer of the model's.
    """
    episode = completion.episode
    if episode is None:
        return None
    if episode.end == "failed":
        raise RuntimeError("the environment failed in this episode")
    return episode.reward
