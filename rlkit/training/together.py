"""Ranks that sample together ask their generators for the same completions in the same order.

A generator whose ranks compute each layer together cannot sample for one of them alone. So each
rank says what it wants, all of them sample everything, and each takes its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from rlkit.ranks import RankError, Ranks
from rlkit.types import Generator, Prompt, Rollout, SamplingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Implements `rlkit.types.Generator` by another one that neighbouring ranks share.

    All ranks of the run call `generate` together, also those that want nothing.
    """

    generator: Generator
    ranks: Ranks
    size: int
    """The ranks that share a generator, a divisor of their number, >= 2."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingConfig,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Rollout]]:
        """Sample this rank's completions, and with them those of the ranks beside it.

        Args:
            prompts: The prompts of this rank, as token ids; there may be none.
            num_samples: Completions of each prompt, >= 1.
            sampling: The distribution to sample from.
            seeds: A seed for each completion, [prompt][sample].

        Returns:
            The rollouts of this rank's prompts, [prompt][sample].

        Raises:
            RankError: Another rank failed, or sampled other tokens.
        """
        own = [_asked(prompt, own) for prompt, own in zip(prompts, seeds, strict=True)]
        # What two ranks ask for alike, such as a further task's evaluation, is sampled once.
        wanted = dict.fromkeys(request for part in self._share(own) for request in part)
        places = {request: place for place, request in enumerate(wanted)}
        rollouts: list[list[Rollout]] = []

        def sample() -> bytes:
            rollouts.extend(
                self.generator.generate(
                    [_prompt(request) for request in wanted],
                    num_samples=num_samples,
                    sampling=sampling,
                    seeds=[list(request[2]) for request in wanted],
                )
            )
            return _digest(rollouts)

        self._compare(self.ranks.share(sample))
        return [
            [replace(rollout, prompt=prompt) for rollout in rollouts[places[request]]]
            for prompt, request in zip(prompts, own, strict=True)
        ]

    def load_adapter(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Sample with this adapter from now on: each rank's generator has a part, or all of it."""
        self.generator.load_adapter(tensors, version)

    def close(self) -> None:
        """Free what this rank's generator holds; idempotent."""
        self.generator.close()

    def _share(self, own: Sequence[_Asked]) -> list[list[_Asked]]:
        """Return what each rank that shares the generator asks for."""
        parts = self.ranks.share(lambda: json.dumps(own).encode())
        return [[_read(request) for request in json.loads(part)] for part in self._team(parts)]

    def _compare(self, digests: Sequence[bytes]) -> None:
        """Raise RankError on all ranks unless those that share a generator have the same tokens."""
        for first in range(0, self.ranks.size, self.size):
            if len(set(digests[first : first + self.size])) > 1:
                names = f"ranks {first} to {first + self.size - 1}"
                raise RankError(f"{names} must sample the same tokens as one engine, got others")

    def _team(self, parts: Sequence[bytes]) -> Sequence[bytes]:
        first = self.ranks.rank // self.size * self.size
        return parts[first : first + self.size]


def together(generator: Generator, ranks: Ranks, *, size: int) -> Generator:
    """Return `generator`, or what asks it for all of `size` ranks that share it."""
    if size == 1:
        return generator
    return Together(generator=generator, ranks=ranks, size=size)


_Asked = tuple[tuple[int, ...], int | None, tuple[int, ...], int]
"""The ids of a prompt, its limit, the seeds of its samples, and its index."""


def _asked(prompt: Prompt, seeds: Sequence[int]) -> _Asked:
    return prompt.ids, prompt.limit, tuple(seeds), prompt.index


def _read(found: Sequence[object]) -> _Asked:
    ids, limit, seeds, index = found
    return tuple(ids), limit, tuple(seeds), index  # type: ignore[arg-type,return-value]


def _prompt(request: _Asked) -> Prompt:
    ids, limit, _, index = request
    return Prompt(index=index, ids=ids, text="", limit=limit)


def _digest(rollouts: Sequence[Sequence[Rollout]]) -> bytes:
    """Return a digest of all tokens; completions are told apart."""
    ids = [token for group in rollouts for row in group for token in (*row.completion_ids, -1)]
    return hashlib.sha256(np.array(ids, dtype=np.int64).tobytes()).digest()
