"""This module is a reward model as the reward function that a run sees."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from rlkit.reward_models.adapter import (
    SharedBase,
    load_reward_adapter,
)
from rlkit.reward_models.batches import score_rows
from rlkit.reward_models.classifier import (
    Classifier,
    check_padding,
    classifier_config,
    classifier_tokenizer,
)
from rlkit.reward_models.inputs import RowMaker, needs_template
from rlkit.reward_models.options import Placement, reward_model_options
from rlkit.rewards import RewardSpec
from rlkit.rewards.scorers import BatchReplies
from rlkit.rewards.wire import Failure, Reply

if TYPE_CHECKING:
    from rlkit.types import Completion

_PROBES = ("Yes.", "No, and here is why: it is much too long for that.", "42")
Scores = Callable[[list[list[int]]], list[float]]
"""Rows of token ids to scores."""


class RewardModelScorer:
    """A reward model in this process, with weights of its own or on the policy's base."""

    def __init__(self, spec: RewardSpec, *, device: torch.device, is_chat: bool) -> None:
        """Score by `spec.options`.

        Args:
            spec: The function.
            device: The device of the run.
            is_chat: Whether prompts are conversations.

        Raises:
            ValueError: An option breaks a rule, with one line.
        """
        self.key = f"reward.functions.{spec.name}.options"
        self.options = reward_model_options(spec)
        placed = {Placement.cpu: "cpu", Placement.cuda: "cuda", Placement.process: "cpu"}
        own = placed.get(self.options.device)
        self.device = device if own is None else torch.device(own)
        self._is_chat = is_chat
        self._rows: RowMaker | None = None
        self._scores: Scores | None = None
        self._base: SharedBase | None = None

    @property
    def shares_base(self) -> bool:
        """Return whether it needs `bind` before `start`."""
        return self.options.is_adapter

    def bind(self, base: SharedBase) -> None:
        """Compute on the policy's base."""
        self._base = base

    def check(self) -> None:
        """Look at the config and the tokenizer; raises ValueError with one line."""
        if self.shares_base:
            return
        classifier_config(self.key, self.options)
        self._make_rows(classifier_tokenizer(self.key, self.options))

    def start(self) -> None:
        """Load the weights, and compare scores of rows alone and together."""
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"{self.key}.device must be cpu or process without a card, got cuda")
        limit = self.options.max_tokens_per_batch
        if self._base is not None:
            base = self._base
            self._make_rows(base.tokenizer)
            adapter = load_reward_adapter(self.key, self.options.source, base)
            self._scores = lambda rows: adapter.scores(base, rows, max_tokens=limit)
        else:
            model = Classifier(self.key, self.options, self.device)
            self._scores = lambda rows: score_rows(
                rows, model.score, max_tokens=limit, pad_id=model.pad_id, device=model.device
            )
        maker = self._maker()
        rows = [maker.cut(maker.of_texts("Is it so?", text)) for text in _PROBES]
        check_padding(self.key, self._scores, rows)

    def score(self, groups: Sequence[Sequence[Completion]], /) -> BatchReplies:
        """Return the score of each completion; one that is not finite is a failure."""
        start = time.perf_counter()
        maker = self._maker()
        assert self._scores is not None, "start comes before score"
        whole = [maker.of_completion(c) for group in groups for c in group]
        rows = [maker.cut(row) for row in whole]
        empty = [i for i, row in enumerate(rows) if not row]
        for i in empty:  # a plain prompt and completion without a character
            rows[i] = [0]
        found = iter(self._scores(rows) if rows else [])
        seconds = (time.perf_counter() - start) / max(1, len(groups))
        replies = [_reply([next(found) for _ in group], seconds) for group in groups]
        overlong = sum(len(row) > maker.max_length for row in whole)
        counts = {"overlong": float(overlong), "tokens": float(sum(map(len, rows)))}
        return BatchReplies(replies, counts)

    def keep_in(self, run_dir: Path, /) -> None:
        """Keep nothing: the same weights give the same scores."""

    def close(self) -> None:
        """Let go of the weights."""
        self._scores = self._base = None

    def _make_rows(self, tokenizer: PreTrainedTokenizerBase) -> None:
        options = self.options
        self._rows = RowMaker(
            tokenizer=tokenizer,
            chat=options.chat,
            eos=options.eos,
            max_length=options.max_length,
        )
        if needs_template(self._rows, is_chat=self._is_chat):
            raise ValueError(
                f"{self.key}.source must have a chat template for a chat task, got "
                f"{options.source} without one; chat=plain puts the texts together"
            )

    def _maker(self) -> RowMaker:
        assert self._rows is not None, "check comes before score"
        return self._rows


def _reply(values: Sequence[float], seconds: float) -> Reply:
    problems = [
        (i, Failure.not_finite, f"the reward model gave {value}")
        for i, value in enumerate(values)
        if not math.isfinite(value)
    ]
    kept = [value if math.isfinite(value) else None for value in values]
    return Reply(seconds, kept, problems)
