"""Count the temporary memory of the kernels, for whoever plans memory without a GPU."""

from __future__ import annotations

import torch

from rlkit.kernels.tilings import HOPPER, Tiling

WORKSPACE_BYTES = 896 * 2**20
"""Default bound on temporary memory, beyond the inputs and what the gradient needs (N D)."""


def padded(words: int) -> int:
    """Return the words per stored row of exponentials: rows start at multiples of 128 bytes."""
    return (words + 63) // 64 * 64


def fused_row_bytes(
    words: int, width: int, tiling: Tiling, *, store: bool, shifted: bool = False
) -> int:
    """Return the bytes of a row in the fused path: numbers per tile, and with `store`, E and E W.

    Args:
        words: V.
        width: D.
        tiling: The cut of the kernel.
        store: Whether the exponentials are stored, for a gradient.
        shifted: Whether each tile is stored relative to its largest, as in float16.

    Returns:
        Bytes.
    """
    per_tiles = (12 if shifted else 8) * (words // tiling.block_n + 2)
    return per_tiles + (2 * padded(words) + 4 * width if store else 0)


def chunked_row_bytes(words: int, itemsize: int) -> int:
    """Return the bytes of a row in the chunked path: logits and two float32 passes over them."""
    return words * 3 * max(4, itemsize)


def logps_workspace_bytes(rows: int, words: int, width: int, *, dtype: torch.dtype) -> int:
    """Return the most bytes that `selected_logps` with a gradient would take if nothing bounded it.

    Args:
        rows: N.
        words: V.
        width: D.
        dtype: That of the hidden states. In bfloat16 the fused path is assumed. In float16 and
            wider the chunked path is, which takes more.

    Returns:
        Bytes.
    """
    if dtype is torch.bfloat16:
        return rows * fused_row_bytes(words, width, HOPPER, store=True)
    return rows * chunked_row_bytes(words, dtype.itemsize)
