"""This module trains a reward model on pairs, by Bradley and Terry.

P(chosen beats rejected) is the sigmoid of the gap of their scores.

What trains is an adapter and a head; the base stays frozen, and may be the policy's in a run.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkit.models.families import backbone_of
from rlkit.policy.lora import init_adapter
from rlkit.reward_models.adapter import RewardAdapter, SharedBase, row_maker
from rlkit.reward_models.batches import LinearHead, at_last_token, batches, padded
from rlkit.reward_models.pairs import PreferencePair
from rlkit.rewards.judge.check import Rate, rate

Say = Callable[[str], None]


class RewardTraining(NamedTuple):
    """These are the options of a training of a reward model."""

    epochs: int = 1
    """Passes over the pairs, >= 1."""
    pairs_per_update: int = 32
    """Pairs of one optimiser update, >= 1."""
    learning_rate: float = 1e-3
    """The rate of AdamW on adapter and head, > 0."""
    max_grad_norm: float = 1.0
    """Larger gradients are scaled down to this 2-norm, > 0."""
    max_length: int = 2048
    """Most tokens of a row; a longer one loses its beginning."""
    tokens_per_batch: int = 4096
    """Most tokens of one forward and backward pass, padding included; a pair stays together."""
    held_out: float = 0.1
    """Share of the prompts, in (0, 1), whose pairs are kept for the accuracy."""
    seed: int = 0


class TrainedReward(NamedTuple):
    """This is a trained reward model and how good it is."""

    found: RewardAdapter
    num_trained_on: int
    accuracy: Rate
    """Share of held-out pairs whose chosen answer scores higher; a tie counts one half."""
    longer_is_chosen: Rate
    """Share of held-out pairs whose chosen answer is the longer one: what length alone gets."""
    std: float
    """Standard deviation of the scores of held-out answers."""


class _PairRows(NamedTuple):
    chosen: list[int]
    rejected: list[int]


def train_reward(
    base: SharedBase, pairs: Sequence[PreferencePair], options: RewardTraining, *, say: Say
) -> TrainedReward:
    """Return a reward model of `pairs`, its scores of the training answers centred at 0.

    Args:
        base: A frozen model with its hooks for adapters.
        pairs: Preferences, some of which are held out by their prompt.
        options: How to train.
        say: Takes a line about each tenth of the updates.

    Raises:
        ValueError: There is no pair to train on or to hold out.
    """
    train, held = _split(pairs, options)
    maker = row_maker(base.tokenizer, max_length=options.max_length)
    rows = [
        _PairRows(
            maker.cut(maker.of_texts(pair.prompt, pair.chosen)),
            maker.cut(maker.of_texts(pair.prompt, pair.rejected)),
        )
        for pair in train
    ]
    adapter = init_adapter(base.lora, seed=options.seed, device=base.device)
    hidden = int(base.model.config.get_text_config().hidden_size)
    weight = torch.zeros(1, hidden, device=base.device, requires_grad=True)
    leaves = [*adapter.values(), weight]
    optimizer = torch.optim.AdamW(leaves, lr=options.learning_rate, weight_decay=0.0)
    updates = list(_updates(len(rows), options))
    for number, chosen in enumerate(updates):
        loss = _accumulate(base, adapter, weight, [rows[i] for i in chosen], options)
        norm = torch.nn.utils.clip_grad_norm_(leaves, options.max_grad_norm)
        if bool(norm.isfinite()):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number % max(1, len(updates) // 10) == 0 or number + 1 == len(updates):
            say(f"update {number + 1} of {len(updates)}: loss {loss:.4f}, gradient {norm:.2g}")
    plain = RewardAdapter(
        adapter={name: leaf.detach() for name, leaf in adapter.items()},
        head=LinearHead(weight.detach()),
    )
    answers = [row for pair in rows for row in pair]
    mean = sum(_scores(base, plain, answers, options)) / len(answers)
    found = RewardAdapter(
        adapter=plain.adapter,
        head=LinearHead(plain.head.weight, torch.tensor([-mean], device=base.device)),
    )
    return _measure(base, found, held, len(train), options)


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return (N) -log sigmoid(chosen - rejected) of N pairs of scores."""
    return -F.logsigmoid(chosen - rejected)


def _accumulate(
    base: SharedBase,
    adapter: dict[str, Tensor],
    weight: Tensor,
    rows: Sequence[_PairRows],
    options: RewardTraining,
) -> float:
    """Add the gradient of the mean loss over `rows`, in parts of a token budget."""
    total = 0.0
    lengths = [max(len(pair.chosen), len(pair.rejected)) for pair in rows]
    for places in batches(lengths, max_tokens=options.tokens_per_batch // 2):
        texts = [rows[i].chosen for i in places] + [rows[i].rejected for i in places]
        ids, mask = padded(texts, pad_id=0, device=base.device)
        with base.lora.active(adapter):
            scores = at_last_token(backbone_of(base.model), LinearHead(weight), ids, mask)
            losses = bradley_terry_loss(scores[: len(places)], scores[len(places) :])
            loss = losses.sum() / len(rows)
            loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _scores(
    base: SharedBase, found: RewardAdapter, rows: list[list[int]], options: RewardTraining
) -> list[float]:
    return found.scores(base, rows, max_tokens=options.tokens_per_batch)


def _measure(
    base: SharedBase,
    found: RewardAdapter,
    held: Sequence[PreferencePair],
    num_trained_on: int,
    options: RewardTraining,
) -> TrainedReward:
    maker = row_maker(base.tokenizer, max_length=options.max_length)
    texts = [(pair, text) for pair in held for text in (pair.chosen, pair.rejected)]
    rows = [maker.cut(maker.of_texts(pair.prompt, text)) for pair, text in texts]
    scores = _scores(base, found, rows, options)
    gaps = [a - b for a, b in zip(scores[0::2], scores[1::2], strict=True)]
    longer = [len(pair.chosen) - len(pair.rejected) for pair in held]
    return TrainedReward(
        found=found,
        num_trained_on=num_trained_on,
        accuracy=_share_above(gaps),
        longer_is_chosen=_share_above(longer),
        std=float(torch.tensor(scores).std()),
    )


def _share_above(values: Sequence[float]) -> Rate:
    return rate(sum(1.0 if v > 0 else 0.5 if v == 0 else 0.0 for v in values), len(values))


def _updates(count: int, options: RewardTraining) -> Iterator[list[int]]:
    """Yield the places of the pairs of each update; the order is a function of the seed."""
    for epoch in range(options.epochs):
        order = list(range(count))
        random.Random(f"{options.seed}:{epoch}").shuffle(order)
        for start in range(0, count, options.pairs_per_update):
            yield order[start : start + options.pairs_per_update]


def _split(
    pairs: Sequence[PreferencePair], options: RewardTraining
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Return pairs to train on and others: all pairs of a prompt are in one half."""
    halves: tuple[list[PreferencePair], list[PreferencePair]] = [], []
    for pair in pairs:
        text = pair.prompt if isinstance(pair.prompt, str) else repr(pair.prompt)
        digest = hashlib.sha256(f"{options.seed}:{text}".encode()).digest()
        is_held = int.from_bytes(digest[:8], "big") / 2**64 < options.held_out
        halves[is_held].append(pair)
    for half, purpose in zip(halves, ("to train on", "to hold out"), strict=True):
        if not half:
            raise ValueError(f"pairs must leave some {purpose}, got none of {len(pairs)}")
    return halves
