"""The table of tilings cuts the fused log-prob kernel for each kind of card: one tiling a card.

A row's logps depend on the tiling, so a card has one for all shapes and modes.
The figures behind each choice are in docs/kernels.md.
"""

from __future__ import annotations

from typing import NamedTuple


class Tiling(NamedTuple):
    """Launch parameters of the kernel `exponentials`."""

    block_m: int = 128
    """Rows of a tile."""
    block_n: int = 256
    """Words of a tile."""
    block_k: int = 64
    """Hidden numbers that are loaded at a time."""
    group_m: int = 16
    """Row tiles that share a panel of words in the L2 cache."""
    num_warps: int = 8
    num_stages: int = 3
    """Loads in flight, the one in use included."""
    descriptors: bool = True
    """Whether the tensor copy engine loads and stores; it exists from capability 9.0 on."""
    flatten: bool = True
    """Whether the loop over tiles is fused with the loop over hidden numbers."""
    arch: str | None = None
    """Compile as for this architecture, such as sm80; None: as for the card itself.

    A newer card runs the instructions of an older one, so benchmarks and tests can force them.
    """


HOPPER = Tiling()
"""It is, of 18 measured on an H200, the fastest or within 2% of it at D = 1536 and D = 4096."""
BLACKWELL = HOPPER
AMPERE = Tiling(descriptors=False, flatten=False)
"""Flattened, the compiler runs out of registers with softcap, bias and entropy together."""
SMALL_AMPERE = Tiling(block_n=128, descriptors=False, flatten=False)
"""Flattened, the same instructions took 6 to 14% longer on an H200."""
SMALL_BLACKWELL = Tiling(block_n=128)


def tiling_of(capability: tuple[int, int]) -> Tiling | None:
    """Return the tiling of cards with a compute capability; None where the fused kernel has none.

    Below 8.0 Triton 3.6 emits no tensor-core instruction, so the chunked path is faster there.
    """
    major, minor = capability
    if major == 8:
        return AMPERE if minor in (0, 7) else SMALL_AMPERE
    return {9: HOPPER, 10: BLACKWELL, 11: BLACKWELL, 12: SMALL_BLACKWELL}.get(major)


def forced(capability: tuple[int, int]) -> Tiling:
    """Return the tiling and the instructions of an older or smaller card, for the card at hand.

    Raises ValueError for cards whose instructions no other card runs: 10.x and 11.x multiply in
    tensor memory.
    """
    tiling = tiling_of(capability)
    if tiling is None or capability[0] in (10, 11):
        raise ValueError(
            "capability must be 8.x, 9.x or 12.x to be forced on another card, "
            f"got {capability[0]}.{capability[1]}"
        )
    return tiling._replace(arch=f"sm{capability[0]}{capability[1]}")
