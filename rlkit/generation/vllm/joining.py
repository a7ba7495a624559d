"""Rows that join an engine on the way: in waves while there is room, or as a stream asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from rlkit.generation.base import check_request
from rlkit.generation.batching import SamplingRow
from rlkit.generation.stream import StreamSource
from rlkit.types import SamplingConfig


class Joining(Protocol):
    """It says which rows join next."""

    def __call__(self, ended: Sequence[SamplingRow], *, live: int) -> Sequence[SamplingRow]:
        """Return the rows that join now; none while no row is `live` ends the call.

        Args:
            ended: The rows that have ended since it was last asked.
            live: The number of rows under way.
        """


def in_waves(waves: Iterator[Sequence[SamplingRow]], *, most_live: int) -> Joining:
    """Take a wave of rows whenever fewer than `most_live` rows are under way."""

    def joining(ended: Sequence[SamplingRow], *, live: int) -> Sequence[SamplingRow]:
        found: list[SamplingRow] = []
        while live + len(found) < most_live and (rows := next(waves, None)) is not None:
            found += rows
        return found

    return joining


def as_asked(
    source: StreamSource, sampling: SamplingConfig, *, version: int, context: int
) -> Joining:
    """Give what has ended to a stream's source, and take what it asks for.

    Args:
        source: It is told of every completion that has ended.
        sampling: The sampling options, for the check of each request.
        version: The version of the policy that is sampled from.
        context: The most tokens of a prompt and its completion.

    Returns:
        The rows that join.
    """

    def joining(ended: Sequence[SamplingRow], *, live: int) -> Sequence[SamplingRow]:
        done = [(row.prompt_number, row.rollout(version)) for row in ended]
        asked = source.more(done, idle=live == 0)
        for _, prompt, seed in asked:
            check_request([prompt], 1, sampling, [[seed]], context=context)
        return [
            SamplingRow(prompt=prompt, prompt_number=key, sample_index=0, seed=seed)
            for key, prompt, seed in asked
        ]

    return joining
