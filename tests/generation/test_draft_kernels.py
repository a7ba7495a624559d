"""Guesses on the card against a search in Python, in Triton's interpreter or on the GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

_SCRIPT = """
import torch
from rlkit.generation.vllm.accel import draft_kernels
from test_draft_kernels import check
check(draft_kernels, torch.device("cpu"))
"""
_TOKENS = 3


def search(texts: list[list[int]], sources: list[int], match: tuple[int, int]) -> list[int]:
    """What followed the longest match: of the first source, and its latest there."""
    own = texts[sources[0]]
    for size in range(min(match[1], len(own)), match[0] - 1, -1):
        for other in (texts[n] for n in sources if n >= 0):
            for at in range(len(other) - 1, size - 1, -1):
                if other[at - size : at] == own[len(own) - size :]:
                    return other[at : at + _TOKENS]
    return []


def check(kernels: Any, device: torch.device) -> None:
    """Texts of one token and of more than a block, matches at all ends, sources that are none."""
    torch.manual_seed(0)
    lengths = [1, 2, 5, 40, 1023, 1024, 1025, 1500]
    for words, match in ((3, (1, 4)), (12, (2, 3)), (40, (1, 1)), (12, (3, 9))):
        texts = [torch.randint(0, words, (n,)).tolist() for n in lengths]
        table = torch.full((len(texts), 1600), 7, dtype=torch.int32)
        for n, text in enumerate(texts):
            table[n, : len(text)] = torch.tensor(text)
        sources = [[n, (n + 3) % 8, -1, (n + 5) % 8] for n in range(8)]
        sources[2] = [2, -1, -1, -1]
        states = torch.tensor([9, 0, 3, 4, 7, 1, 8, 2], dtype=torch.int32)
        drafts = torch.full((10, _TOKENS), -5, dtype=torch.int64)
        on = [t.to(device) for t in (table, torch.tensor(lengths, dtype=torch.int32))]
        on += [torch.tensor(sources, dtype=torch.int32).to(device), drafts.to(device)]
        made = kernels.guess(*on, states.to(device), match=match).tolist()
        drafts = on[3].cpu()
        expected = [search(texts, row, match) for row in sources]
        assert made == [len(guess) for guess in expected]
        for state, guess in zip(states.tolist(), expected, strict=True):
            assert drafts[state].tolist() == guess + [0] * (_TOKENS - len(guess))
        assert drafts[5].tolist() == [-5] * _TOKENS, "no other row is written"
        assert any(made), "the case must have matches"
        _check_keep(kernels, device, texts, on, states, made)


def _check_keep(
    kernels: Any,
    device: torch.device,
    texts: list[list[int]],
    on: list[torch.Tensor],
    states: torch.Tensor,
    made: list[int],
) -> None:
    """Rows whose guesses are right up to the first, the second, ...; rows near their limits."""
    table, lengths, _, drafts = on
    own = torch.randperm(8, dtype=torch.int32)
    sampled = torch.randint(100, 120, (8, _TOKENS + 1))
    for row, state in enumerate(states.tolist()):
        right = row % (_TOKENS + 1)
        sampled[row, :right] = drafts[state, :right].cpu()
    room = torch.tensor([9, 9, 9, 9, 9, 2, 1, 0], dtype=torch.int32)
    before = lengths.cpu().clone()
    limits = before[own.long()] + room
    held, rejected = kernels.keep(
        *(sampled.to(device), drafts, states.to(device)),
        torch.tensor(made, dtype=torch.int32, device=device),
        *(table, lengths, own.to(device), limits.to(device)),
    )
    for row in range(8):
        guess = drafts[states[row]].tolist()
        right = 0
        while right < made[row] and guess[right] == sampled[row, right]:
            right += 1
        count = min(right + 1, int(room[row]))
        assert (int(held[row]), int(rejected[row])) == (count, _TOKENS + 1 - count)
        text = texts[own[row]] + sampled[row, :count].tolist()
        assert int(lengths[own[row]]) == len(text)
        assert table[own[row], : len(text)].tolist() == text
        assert table[own[row], len(text)] == 7, "what does not hold is not written"


def test_in_the_interpreter() -> None:
    root = Path(__file__).parents[2]
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env=os.environ
        | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{root}{os.pathsep}{Path(__file__).parent}"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_the_gpu() -> None:
    from rlkit.generation.vllm.accel import draft_kernels

    check(draft_kernels, torch.device("cuda"))
