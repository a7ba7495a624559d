# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""Guess the next tokens of rows on the card, and keep the guesses that the sampler takes.

Texts are rows of one table of token ids. A guess is what follows the longest earlier match of a
text's last tokens, in the text itself or in others. Of equally long matches that of the first
source counts, and within a source the latest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlkit.runtime.triton import tl, triton

_BLOCK = 1024
_PLACES = 1 << 24
"""Places that fit into a score beside the length of a match; texts are shorter."""


def guess(
    table: Tensor,
    lengths: Tensor,
    sources: Tensor,
    drafts: Tensor,
    states: Tensor,
    *,
    match: tuple[int, int],
) -> Tensor:
    """Write guesses into `drafts`, and return how many were made for each row.

    Args:
        table: (texts, places) int32 token ids.
        lengths: (texts,) int32 tokens of each text.
        sources: (rows, S) int32 texts that are searched for a row; the first is its own, and those
            below 0 are none.
        drafts: (states, K) int64 guesses; only the rows at `states` are written, with 0 behind the
            last guess.
        states: (rows,) int32 the place of each row in `drafts`.
        match: The least and the most tokens of a match.

    Returns:
        (rows,) int32, in [0, K].
    """
    rows, parts = sources.shape
    scores = torch.empty(rows, parts, dtype=torch.int32, device=table.device)
    made = torch.empty(rows, dtype=torch.int32, device=table.device)
    _match_kernel[(rows, parts)](
        table,
        table.stride(0),
        lengths,
        sources,
        scores,
        SHORTEST=match[0],
        LONGEST=match[1],
        PLACES=_PLACES,
        BLOCK=_BLOCK,
    )
    _guess_kernel[(rows,)](
        table,
        table.stride(0),
        lengths,
        sources,
        scores,
        drafts,
        drafts.stride(0),
        states,
        made,
        parts,
        drafts.shape[1],
        PLACES=_PLACES,
        PARTS=triton.next_power_of_2(parts),
        TOKENS=triton.next_power_of_2(drafts.shape[1]),
        num_warps=1,
    )
    return made


def keep(
    sampled: Tensor,
    drafts: Tensor,
    states: Tensor,
    made: Tensor,
    table: Tensor,
    lengths: Tensor,
    texts: Tensor,
    limits: Tensor,
) -> tuple[Tensor, Tensor]:
    """Append the sampled tokens that hold to the texts of the rows.

    These are the tokens up to the first guess that is not what was sampled in its place, and no
    text grows beyond its limit.

    Args:
        sampled: (rows, K + 1) int64 the sampler's tokens.
        drafts: (states, K) int64 the guesses.
        states: (rows,) int32 the place of each row in `drafts`.
        made: (rows,) int32 how many guesses of a row were made.
        table: (texts, places) int32 token ids; grows in place.
        lengths: (texts,) int32; grows in place.
        texts: (rows,) int32 the text of each row.
        limits: (rows,) int32 most tokens of its text.

    Returns:
        (rows,) int32 tokens that hold, in [0, K + 1], and (rows,) int32 those that do not.
    """
    rows, tokens = sampled.shape
    held, rejected = torch.empty_like(made), torch.empty_like(made)
    _keep_kernel[(rows,)](
        sampled,
        drafts,
        drafts.stride(0),
        states,
        made,
        table,
        table.stride(0),
        lengths,
        texts,
        limits,
        held,
        rejected,
        tokens - 1,
        TOKENS=triton.next_power_of_2(tokens),
        num_warps=1,
    )
    return held, rejected


@triton.jit
def _match_kernel(
    table, stride, lengths, sources, scores,
    SHORTEST: tl.constexpr, LONGEST: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Score the best match of one row in one source: its length, then its place; -1 for none."""
    row, part = tl.program_id(0), tl.program_id(1)
    own = tl.load(sources + row * tl.num_programs(1))
    other = tl.load(sources + row * tl.num_programs(1) + part)
    best = -1
    if other >= 0:
        length = tl.load(lengths + own)
        end = tl.load(lengths + other)
        mine = table + own.to(tl.int64) * stride
        theirs = table + other.to(tl.int64) * stride
        for start in range(0, end, BLOCK):
            at = start + tl.arange(0, BLOCK)
            alive = at < end
            matched = tl.zeros([BLOCK], dtype=tl.int32)
            for back in tl.static_range(1, LONGEST + 1):
                alive = alive & (at >= back)
                # No token is below 0: where the row has no such token, nothing is equal to it.
                want = tl.load(mine + length - back, mask=length >= back, other=-1)
                have = tl.load(theirs + at - back, mask=alive, other=-2)
                alive = alive & (have == want)
                matched += alive.to(tl.int32)
            score = tl.where(matched >= SHORTEST, matched * PLACES + at, -1)
            best = tl.maximum(best, tl.max(score))
    tl.store(scores + row * tl.num_programs(1) + part, best)


@triton.jit
def _guess_kernel(
    table, stride, lengths, sources, scores, drafts, draft_stride, states, made, parts, tokens,
    PLACES: tl.constexpr, PARTS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    each = tl.arange(0, PARTS)
    found = tl.load(scores + row * parts + each, mask=each < parts, other=-1)
    # Of equally long matches the first source's counts, whatever the places.
    size = tl.max(tl.where(found >= 0, found // PLACES, -1))
    part = tl.min(tl.where((found >= 0) & (found // PLACES == size), each, PARTS))
    place = tl.maximum(tl.max(tl.where(each == part, found, -1)), 0) % PLACES
    text = tl.load(sources + row * parts + tl.minimum(part, parts - 1))
    text = tl.maximum(text, 0)
    # Without a match nothing is inside.
    end = tl.where(size > 0, tl.load(lengths + text), 0)
    at = tl.arange(0, TOKENS)
    inside = (at < tokens) & (place + at < end)
    token = tl.load(table + text.to(tl.int64) * stride + place + at, mask=inside, other=0)
    state = tl.load(states + row)
    tl.store(drafts + state * draft_stride + at, token.to(tl.int64), mask=at < tokens)
    tl.store(made + row, tl.sum(inside.to(tl.int32)))


@triton.jit
def _keep_kernel(
    sampled, drafts, draft_stride, states, made, table, stride, lengths, texts, limits, held,
    rejected, tokens, TOKENS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    at = tl.arange(0, TOKENS)
    token = tl.load(sampled + row * (tokens + 1) + at, mask=at <= tokens, other=0)
    state, made_here = tl.load(states + row), tl.load(made + row)
    draft = tl.load(drafts + state * draft_stride + at, mask=at < tokens, other=-1)
    wrong = (draft != token) | (at >= made_here)
    # The first place whose guess is wrong still has the sampler's own token.
    right = tl.min(tl.where(wrong, at, tokens))
    text = tl.load(texts + row)
    length = tl.load(lengths + text)
    room = tl.maximum(tl.load(limits + row) - length, 0)
    count = tl.minimum(right + 1, room)
    place = table + text.to(tl.int64) * stride + length + at
    tl.store(place, token.to(tl.int32), mask=at < count)
    tl.store(lengths + text, length + count)
    tl.store(held + row, count)
    tl.store(rejected + row, tokens + 1 - count)
