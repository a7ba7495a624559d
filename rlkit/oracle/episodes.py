"""Worlds of several turns can be written down as well: every episode, reply and turn's reward.

A turn is at most W words, and word 0 ends it. A turn that begins with word 0 ends the episode. To
any other the environment replies at random, by a law that the words before it decide. The policy
sees the reply as context; its words are of the same vocabulary, and nobody sampled them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from rlkit.oracle.expectation import World, world_over
from rlkit.oracle.tree import END, Tree

REPLIES = ((1,), (2, 1))
"""The environment says one of these; they differ in length."""

Word = tuple[int, bool, int]
"""The id of a word, whether the policy sampled it, and the number of its turn."""


class Branch(NamedTuple):
    """A branch is an episode, or the beginning of one."""

    words: tuple[Word, ...] = ()
    chance: float = 1.0
    """The probability of the environment's replies, given the policy's words."""


def enumerate_episodes(*, vocabulary: int, words: int, turns: int) -> Tree:
    """Return the tree of all episodes: 85 for V = 3, W = 2 and two turns.

    Args:
        vocabulary: Words of the language, >= 3.
        words: Most words of a turn, >= 1.
        turns: Most turns of an episode, >= 1.

    Returns:
        The episodes as completions, with the environment's words among them.
    """
    episodes = list(_episodes(Branch(), vocabulary=vocabulary, words=words, left=turns))
    width = max(len(episode.words) for episode in episodes)
    sampled = [
        [episode.words[:t] for t, word in enumerate(episode.words) if word[1]]
        for episode in episodes
    ]
    prefixes = list(dict.fromkeys(tuple(w[0] for w in p) for row in sampled for p in row))
    state_of = {prefix: index for index, prefix in enumerate(prefixes)}

    def states(words_of: tuple[Word, ...]) -> list[int]:
        ids = tuple(word[0] for word in words_of)
        return [state_of[ids[:t]] if word[1] else 0 for t, word in enumerate(words_of)]

    def column(rows: list[list[int]]) -> Tensor:
        return torch.tensor([row + [0] * (width - len(row)) for row in rows])

    rows = [episode.words for episode in episodes]
    return Tree(
        ids=column([[word[0] for word in row] for row in rows]),
        mask=column([[int(word[1]) for word in row] for row in rows]).bool(),
        states=column([states(row) for row in rows]),
        prefixes=tuple(prefixes),
        vocabulary=vocabulary,
        spliced=column([[int(not word[1]) for word in row] for row in rows]).bool(),
        turn_ids=column([[word[2] * word[1] for word in row] for row in rows]),
        chances=torch.tensor([episode.chance for episode in episodes], dtype=torch.float64),
    )


def episode_world(
    *,
    parametrisation: str,
    on_policy: bool,
    drift: float = 0.8,
    words: int = 2,
    turns: int = 2,
) -> World:
    """Return the world of several turns in the tests and in `docs/objective.md`.

    Args:
        parametrisation: `tab` or `tied`.
        on_policy: Whether the policy itself samples.
        drift: The distance of the policy that samples, if it is another one.
        words: Most words of a turn.
        turns: Most turns of an episode.

    Returns:
        Three words; a turn's reward, in [0, 1], depends on all that was said until its end.
    """
    tree = enumerate_episodes(vocabulary=3, words=words, turns=turns)
    rewards = turn_rewards(tree)
    return world_over(
        tree,
        rewards.sum(dim=1),
        parametrisation=parametrisation,
        on_policy=on_policy,
        drift=drift,
    )._replace(turn_rewards=rewards)


def turn_rewards(tree: Tree) -> Tensor:
    """Return (N, T) each turn's reward at its last sampled word, blind to later turns."""
    result = torch.zeros(tree.ids.shape, dtype=torch.float64)
    for n in range(len(tree)):
        for k in range(int(tree.turns[n].max()) + 1):
            of_turn = (tree.mask[n] & (tree.turns[n] == k)).nonzero()
            last = int(of_turn[-1])
            number = _number(tree.ids[n, : last + 1].tolist())
            result[n, last] = 0.5 + 0.5 * math.sin(2.3 * number + k)
    return result


def _episodes(begun: Branch, *, vocabulary: int, words: int, left: int) -> Iterator[Branch]:
    number = 0 if not begun.words else begun.words[-1][2] + 1
    for turn in _turns(vocabulary=vocabulary, words=words):
        said = Branch((*begun.words, *((w, True, number) for w in turn)), begun.chance)
        if turn[0] == END or left == 1:
            yield said
            continue
        for reply, chance in zip(REPLIES, _law(said), strict=True):
            heard = (*said.words, *((w, False, number) for w in reply))
            after = Branch(heard, said.chance * chance)
            yield from _episodes(after, vocabulary=vocabulary, words=words, left=left - 1)


def _turns(*, vocabulary: int, words: int) -> Iterator[tuple[int, ...]]:
    for length in range(words):
        for begun in product(range(1, vocabulary), repeat=length):
            yield (*begun, END)
    yield from product(range(1, vocabulary), repeat=words)


def _law(said: Branch) -> tuple[float, float]:
    """Return the probabilities of the replies, which depend on every word before them."""
    first = 0.5 + 0.3 * math.sin(1.7 * _number([word[0] for word in said.words]))
    return first, 1.0 - first


def _number(ids: list[int]) -> float:
    return float(sum((place + 1) * (word + 1) for place, word in enumerate(ids)))
