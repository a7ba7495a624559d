"""This language can be written down: every completion, its probability and its gradient.

Words are 0 .. V-1, word 0 ends a completion, and completions end after T words at the latest. All
is float64. Parameters come from sines, not from a random generator, so that numbers do not depend
on a library's version.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

END = 0


class Tree(NamedTuple):
    """A tree has all N completions of at most T words over a vocabulary of V, and S prefixes."""

    ids: Tensor
    """(N, T) words, 0 after the end."""
    mask: Tensor
    """(N, T) True on sampled words, the ending one included."""
    states: Tensor
    """(N, T) index of the prefix before each word, 0 after the end."""
    prefixes: tuple[tuple[int, ...], ...]
    vocabulary: int
    spliced: Tensor | None = None
    """(N, T) True on words of an environment; None = there is none."""
    turn_ids: Tensor | None = None
    """(N, T) number of each sampled word's turn; None = there is one."""
    chances: Tensor | None = None
    """(N,) probability of what the environment says; None = it says nothing."""

    @property
    def turns(self) -> Tensor:
        """Return `turn_ids`, 0 where there is one turn."""
        return torch.zeros_like(self.ids) if self.turn_ids is None else self.turn_ids

    def __len__(self) -> int:
        return self.ids.shape[0]


def enumerate_tree(*, vocabulary: int, max_length: int) -> Tree:
    """Return the tree of all completions: 15 for V = 3, T = 3; 121 for V = 4, T = 4."""
    words = range(1, vocabulary)
    prefixes = [p for length in range(max_length) for p in product(words, repeat=length)]
    state_of = {prefix: index for index, prefix in enumerate(prefixes)}
    completions = [(*p, END) for p in prefixes]
    completions += list(product(words, repeat=max_length))
    ids, mask, states = [], [], []
    for words_of in completions:
        padding = max_length - len(words_of)
        ids.append([*words_of, *([END] * padding)])
        mask.append([True] * len(words_of) + [False] * padding)
        states.append([state_of[words_of[:t]] for t in range(len(words_of))] + [0] * padding)
    return Tree(
        torch.tensor(ids), torch.tensor(mask), torch.tensor(states), tuple(prefixes), vocabulary
    )


Table = Callable[[Tensor], Tensor]
"""Parameters (d,) to log-probabilities (S, V)."""


class Model(NamedTuple):
    """A parametrisation makes the policies over a tree."""

    name: str
    table: Table
    num_parameters: int


def tabular(tree: Tree) -> Model:
    """Return one row of logits per prefix: nothing is shared."""
    shape = (len(tree.prefixes), tree.vocabulary)
    return Model(
        "tab", lambda theta: theta.view(shape).log_softmax(dim=-1), shape[0] * tree.vocabulary
    )


def tied(tree: Tree, *, hidden: int = 3, features: int = 4) -> Model:
    """Return a two-layer network on fixed features of the prefix: all prefixes share parameters."""
    inputs = waves(len(tree.prefixes) * features, phase=0.7, scale=1.5).view(-1, features)
    split = hidden * features

    def table(theta: Tensor) -> Tensor:
        first = theta[:split].view(features, hidden)
        second = theta[split : split + hidden * tree.vocabulary].view(hidden, tree.vocabulary)
        bias = theta[split + hidden * tree.vocabulary :]
        return ((inputs @ first).tanh() @ second + bias).log_softmax(dim=-1)

    return Model("tied", table, split + hidden * tree.vocabulary + tree.vocabulary)


def waves(count: int, *, phase: float, scale: float) -> Tensor:
    """Return `count` fixed numbers in [-scale, scale] without visible order."""
    k = torch.arange(1, count + 1, dtype=torch.float64)
    return scale * torch.sin(12.9898 * k * k.sqrt() + phase)


def logps_of(tree: Tree, table: Tensor) -> Tensor:
    """Return (N, T) log-probability of each word given its prefix, 0.0 after the end."""
    return table[tree.states, tree.ids].masked_fill(~tree.mask, 0.0)


def probabilities(tree: Tree, table: Tensor) -> Tensor:
    """Return (N,) probability of each completion; they sum to 1."""
    sampled = logps_of(tree, table).sum(dim=1).exp()
    return sampled if tree.chances is None else sampled * tree.chances


def full_kl_of(tree: Tree, first: Tensor, second: Tensor) -> Tensor:
    """Return (N, T) KL(first || second) of the next word at each prefix, 0.0 after the end."""
    per_state = (first.exp() * (first - second)).sum(dim=-1)
    return per_state[tree.states].masked_fill(~tree.mask, 0.0)


def bucketed(table: Tensor, reference: Tensor, top_k: int) -> Tensor:
    """Return (S, k + 1) log-probabilities of the reference's `top_k` words and of the rest."""
    kept = table.gather(-1, reference.topk(min(top_k, table.shape[-1]), dim=-1).indices)
    rest = (1.0 - kept.exp().sum(dim=-1, keepdim=True)).clamp(min=1e-300).log()
    return torch.cat([kept, rest], dim=-1)


def entropy_of(tree: Tree, table: Tensor) -> Tensor:
    """Return (N, T) entropy of the next-word distribution at each prefix, 0.0 after the end."""
    return (-(table.exp() * table).sum(dim=-1))[tree.states].masked_fill(~tree.mask, 0.0)
