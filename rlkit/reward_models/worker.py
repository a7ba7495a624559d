"""This module runs a reward model in a process of its own, which is killed when it hangs.

The process is one of the reward pool's workers: it has the pool's deadlines, and its death costs
the samples of one group.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit.rewards import RewardConfig, RewardSpec
from rlkit.rewards.pool import RewardPool
from rlkit.rewards.scorers import BatchReplies
from rlkit.rewards.wire import Failure, Reply
from rlkit.types import Completion, FinishReason, Prompt

if TYPE_CHECKING:
    from rlkit.reward_models.scorer import RewardModelScorer

_STEP_TIMEOUT_S = 3600.0
_MEMORY_BYTES = 2**45
"""The limit is out of reach: a model's weights may take what there is."""


def scores(
    group: Sequence[Completion], *, name: str, options: Mapping[str, Any], is_chat: bool
) -> list[float | None]:
    """Return the scores of a group, in the worker: the weights are loaded at the first call.

    Args:
        group: Completions of one prompt.
        name: The function's name in `reward.functions`.
        options: The reward model's options.
        is_chat: Whether prompts are conversations.
    """
    scorer = _loaded(name, json.dumps(dict(options), sort_keys=True), is_chat)
    (reply,) = scorer.score([group]).groups
    if reply.problems:
        raise ValueError(reply.problems[0][2])
    return reply.values


@functools.cache
def _loaded(name: str, options: str, is_chat: bool) -> RewardModelScorer:
    import torch  # here: the trainer imports this module for its scorer, and loads no weights

    from rlkit.reward_models.scorer import RewardModelScorer

    spec = RewardSpec(name, "reward_model", 1.0, json.loads(options))
    scorer = RewardModelScorer(spec, device=torch.device("cpu"), is_chat=is_chat)
    scorer.check()
    scorer.start()
    return scorer


class IsolatedRewardModel:
    """A reward model in a worker of its own is a scorer as any other."""

    def __init__(self, inner: RewardModelScorer, spec: RewardSpec, *, is_chat: bool) -> None:
        """Start the worker; `inner` checks the options here, and scores there."""
        self._inner = inner
        self._name = spec.name
        options = {"name": spec.name, "options": dict(spec.options), "is_chat": is_chat}
        target = "rlkit.reward_models.worker:scores"
        config = RewardConfig(
            workers=1,
            timeout_s=inner.options.timeout_s,
            step_timeout_s=_STEP_TIMEOUT_S,
            max_memory_bytes=_MEMORY_BYTES,
        )
        there = spec._replace(fn=target, options=options, weight=1.0)
        self._pool = RewardPool([there], config)

    def check(self) -> None:
        """Look at the config and the tokenizer, and start the process."""
        self._inner.check()
        self._pool.verify()

    def start(self) -> None:
        """Let the process load the weights; raises ValueError with one line."""
        prompt = Prompt(index=0, ids=(), text="Is it so?")
        probe = Completion(prompt=prompt, text="Yes.", ids=(), finish_reason=FinishReason.stop)
        found = self._pool.score([[probe]])
        for message in found.report.messages.values():
            raise ValueError(f"{self._inner.key}.source must score a text, got: {message}")

    def score(self, groups: Sequence[Sequence[Completion]], /) -> BatchReplies:
        """Return the score of each completion; those of a group that failed have none."""
        found = self._pool.score(groups)
        seconds = found.report.seconds / max(1, len(groups))
        example = found.report.examples.get(self._name)
        kind = Failure.raised if example is None else example.kind
        message = "" if example is None else example.message
        replies = []
        for group in found.components:
            values = [parts[0] for parts in group]
            problems = [(i, kind, message) for i, v in enumerate(values) if math.isnan(v)]
            kept = [None if math.isnan(v) else v for v in values]
            replies.append(Reply(seconds, kept, problems))
        return BatchReplies(replies)

    def keep_in(self, run_dir: Path, /) -> None:
        """Keep nothing: the same weights give the same scores."""

    def close(self) -> None:
        """End the process."""
        self._pool.close()
