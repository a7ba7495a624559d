"""This module has what does not learn: all completions, the reference policy, the rewards.

Numbers are drawn by SplitMix64 (`rlkit.generation.sampling.uniforms`), not by a library's random
generator, so that they are the same for every version of torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlkit.generation.sampling import uniforms
from rlkit.oracle.tree import Tree, enumerate_tree
from rlkit.tabular.config import TabularGeneratorConfig, TabularModelConfig, TabularTaskConfig

_REFERENCE, _REWARDS, _NOISE = 1, 2, 3
"""Streams of random numbers that must not meet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TabularWorld:
    """A world has P prompts, N completions of at most T of V words, and S prefixes."""

    tree: Tree
    ref_logits: Float[Tensor, "P S V"]
    rewards: Float[Tensor, "P N"]
    """0 or 1."""

    @property
    def num_words(self) -> int:
        return self.tree.vocabulary


def make_world(model: TabularModelConfig, task: TabularTaskConfig) -> TabularWorld:
    """Return the world of `model=tabular task=tabular`; depends on their options alone."""
    tree = enumerate_tree(vocabulary=model.vocabulary, max_length=task.max_completion_length)
    shape = (task.num_prompts, len(tree.prefixes), tree.vocabulary)
    logits = model.reference_scale * normal(shape, seed=model.reference_seed, stream=_REFERENCE)
    return TabularWorld(tree=tree, ref_logits=logits, rewards=_rewards(task, len(tree)))


def sampler_noise(config: TabularGeneratorConfig, world: TabularWorld) -> Float[Tensor, "P S V"]:
    """Return the fixed errors of the sampler's logits."""
    shape = tuple(world.ref_logits.shape)
    return config.logit_noise * normal(shape, seed=config.noise_seed, stream=_NOISE)


def normal(shape: tuple[int, ...], *, seed: int, stream: int) -> Float[Tensor, "..."]:
    """Return the standard normal numbers, float64, a function of the arguments alone."""
    uniform = _uniform(shape, seed=seed, stream=stream).clamp(min=2.0**-60)
    numbers: Tensor = torch.special.ndtri(uniform)
    return numbers


def states_of(
    ids: Int[Tensor, "B C"], mask: Bool[Tensor, "B C"], *, num_words: int
) -> Int[Tensor, "B C"]:
    """Index of the prefix before each word, as in `Tree.states`; 0 after the end.

    Prefixes are numbered breadth first, so the prefix i followed by word w is i (V - 1) + w.
    """
    state = torch.zeros_like(ids[:, 0])
    columns = []
    for t in range(ids.shape[1]):
        columns.append(state)
        state = state * (num_words - 1) + ids[:, t]
    return torch.stack(columns, dim=1).masked_fill(~mask, 0)


def _rewards(task: TabularTaskConfig, num_completions: int) -> Float[Tensor, "P N"]:
    shape = (task.num_prompts, num_completions)
    chance = _uniform(shape, seed=task.seed, stream=_REWARDS)
    densities = [task.densities[i % len(task.densities)] for i in range(task.num_prompts)]
    right = chance < torch.tensor(densities, dtype=torch.float64)[:, None]
    right[torch.arange(task.num_prompts), chance.argmin(dim=1)] = True
    return right.to(torch.float64)


def _uniform(shape: tuple[int, ...], *, seed: int, stream: int) -> Float[Tensor, "..."]:
    count = int(torch.tensor(shape).prod())
    first = (seed << 40) + (stream << 32)
    return uniforms(torch.arange(first, first + count), 0).view(shape)
