"""This room holds the reward functions and the killable pool that runs them.

A reward function gets one prompt's completions and returns one number (or None: not applicable)
for each; marked `per_sample`, it gets one completion. Write one in any file and name it:

    # my_rewards.py
    def shortest(group):
        best = min(len(completion.ids) for completion in group)
        return [float(len(completion.ids) == best) for completion in group]

    rlkit +reward.functions.shortest.fn=my_rewards.py:shortest

    tags, answers, math, length         the built-in functions
    unsloth_2025                        the five of the February 2025 notebooks
    golds                               which rows a built-in function cannot judge
    numbers                             exact rationals, which the built-in functions compare
    load                                names to functions
    pool, process, worker, wire         running them in processes that can be killed
    scores, config                      weighted sums, report, options
    scorers                             judges and reward models, which see a whole batch at once
    judge                               a language model that compares answers

Nothing here imports torch: a worker starts in a tenth of a second.
"""

from rlkit.rewards.config import (
    SCHEMAS,
    OnFailure,
    RewardConfig,
    RewardFunctionConfig,
    RewardSpec,
    SpecialTokens,
    reward_specs,
)
from rlkit.rewards.load import REGISTRY, per_sample
from rlkit.rewards.wire import Failure

__all__ = [
    "REGISTRY",
    "SCHEMAS",
    "Failure",
    "OnFailure",
    "RewardConfig",
    "RewardFunctionConfig",
    "RewardSpec",
    "SpecialTokens",
    "per_sample",
    "reward_specs",
]
