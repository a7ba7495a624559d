"""This module scores rows of token ids in batches of a token budget.

The place of a score is the last real token by the row's length, never by the pad token's id.
With pad = end token, a search by id reads the wrong place. So a score depends on the row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ScoreBatch = Callable[[Tensor, Tensor], Tensor]
"""(B, L) ids padded on the right and their (B, L) mask, to (B) scores in float32."""


class LinearHead(NamedTuple):
    """A linear head makes a number of a hidden state, in float32."""

    weight: Tensor
    """(1, D), float32."""
    bias: Tensor | None = None


def batches(lengths: Sequence[int], *, max_tokens: int) -> Iterator[list[int]]:
    """Yield the places of rows in batches, longest first, each of at most `max_tokens` padded.

    A row that is longer by itself is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for place in order:
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def score_rows(
    rows: Sequence[Sequence[int]],
    score: ScoreBatch,
    *,
    max_tokens: int,
    pad_id: int,
    device: torch.device,
) -> list[float]:
    """Return the score of each row, in order.

    Args:
        rows: Token ids, at least one each.
        score: The model's forward pass.
        max_tokens: Most tokens of a batch, padding included.
        pad_id: Any id with an embedding; the mask says what is padding.
        device: The device of the model.

    Returns:
        A number for each row; not finite where the model gave none.
    """
    found = [0.0] * len(rows)
    for places in batches([len(row) for row in rows], max_tokens=max_tokens):
        ids, mask = padded([rows[i] for i in places], pad_id=pad_id, device=device)
        with torch.no_grad():
            values = score(ids, mask).float().cpu().tolist()
        for place, value in zip(places, values, strict=True):
            found[place] = value
    return found


def padded(
    rows: Sequence[Sequence[int]], *, pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return (B, L) ids padded on the right, and the mask of what is no padding."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(list(row))
        mask[i, : len(row)] = 1
    return ids.to(device), mask.to(device)


def at_last_token(backbone: nn.Module, head: LinearHead, ids: Tensor, mask: Tensor) -> Tensor:
    """Return (B) scores of a causal backbone: the float32 head at each row's last real token.

    Args:
        backbone: Token ids to hidden states.
        head: The head, on the same device.
        ids: (B, L) ids, padded on the right.
        mask: (B, L), 1 on real tokens.
    """
    states: Tensor = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    last = mask.sum(dim=1) - 1
    chosen = states[torch.arange(len(ids), device=ids.device), last]
    return F.linear(chosen.to(head.weight.dtype), head.weight, head.bias).squeeze(1)
