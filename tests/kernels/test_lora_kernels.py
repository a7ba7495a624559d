"""The kernels of vLLM's adapter against plain torch, bit for bit where the order of sums allows.

On a CPU under Triton's interpreter (test_interpreter.py), whose tl.dot sums as torch may not.
"""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from triton_places import DEVICE, INTERPRETED, MARKS

pytestmark = MARKS
KINDS = [torch.bfloat16, torch.float32]
PADDED = 8
"""Columns of the base's product that belong to nothing."""


def case(
    rows: int, widths: tuple[int, ...], rank: int, kind: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """base, low, b, active, and the output by a loop over parts in float64, rounded as stated."""
    torch.manual_seed(0)
    total = sum(widths)
    both = torch.randn(rows, total + len(widths) * rank + PADDED).to(kind)
    b = torch.randn(total, rank).to(kind)
    active = torch.randint(0, 2, (rows + 5,), dtype=torch.int32)
    base, low = both[:, :total], both[:, total:]
    truth = base.clone()
    ends = [0, *accumulate(widths)]
    for part in range(len(widths)):
        begin, end = ends[part], ends[part + 1]
        product = low[:, part * rank : (part + 1) * rank].double() @ b[begin:end].double().T
        rounded = product.to(kind).double() * active[:rows, None]
        truth[:, begin:end] = (base[:, begin:end].double() + rounded).to(kind)
    both = both.to(DEVICE)
    return both[:, :total], both[:, total:], b.to(DEVICE), active.to(DEVICE), truth


def assert_rounded_alike(got: Tensor, truth: Tensor) -> None:
    """All but a few elements, whose sums lie at the edge of a rounding, are the same bits."""
    got = got.cpu()
    # float32 sums of up to 80 products in another order; bfloat16: one rounding or two apart.
    limit = 2e-5 if truth.dtype is torch.float32 else 4 * torch.finfo(truth.dtype).eps
    assert float(((got - truth).abs() / (1 + truth.abs())).max()) <= limit
    if truth.dtype is torch.bfloat16:
        assert float((got != truth).float().mean()) < 0.01


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("rank", [1, 8, 16, 80])
@pytest.mark.parametrize("widths", [(96,), (64, 64), (128, 32, 32)], ids=str)
def test_triton_expand(widths: tuple[int, ...], rank: int, kind: torch.dtype) -> None:
    from rlkit.generation.vllm.accel import lora_kernels

    base, low, b, active, truth = case(37, widths, rank, kind)
    early = not INTERPRETED and torch.cuda.get_device_capability()[0] >= 9
    for is_early in {False, early}:
        tile = lora_kernels.tiling(37, widths, early=is_early)
        out = torch.full_like(base, float("nan"), memory_format=torch.contiguous_format)
        lora_kernels.expand(out, base, low, b, active, widths, tile)
        assert_rounded_alike(out, truth)
    inactive = active[:37] == 0
    assert torch.equal(out[inactive], base[inactive])
    own = base.clone()  # in place, and in the tiles of many rows
    lora_kernels.expand(own, own, low, b, active, widths, tile._replace(block_m=64))
    assert_rounded_alike(own, truth)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_triton_expand_gated(kind: torch.dtype) -> None:
    from rlkit.generation.vllm.accel import lora_kernels

    base, low, b, active, truth = case(19, (96, 96), 16, kind)
    tile = lora_kernels.tiling(19, (96, 96), early=False)
    out = base.new_full((19, 96), float("nan"))
    lora_kernels.expand_gated(out, base, low, b, active, tile)
    gate, up = truth.chunk(2, 1)
    assert_rounded_alike(out, F.silu(gate) * up)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("width", "rank"), [(96, 16), (64, 1), (192, 80)])
def test_triton_expand_norm(width: int, rank: int, kind: torch.dtype) -> None:
    from rlkit.generation.vllm.accel.lora_norm import expand_norm, fits

    base, low, b, active, y = case(19, (width,), rank, kind)
    residual, gain = torch.randn(19, width + 3).to(kind)[:, :width], torch.randn(width).to(kind)
    after = (residual.double() + y.double()).to(kind)
    scale = torch.rsqrt(after.double().square().mean(1, keepdim=True) + 1e-6)
    truth = ((after.double() * scale).to(kind).double() * gain.double()).to(kind)
    early = not INTERPRETED and torch.cuda.get_device_capability()[0] >= 9
    for is_early in {False, early}:
        held = residual.to(DEVICE).clone()
        out = base.new_full((19, width), float("nan"))
        expand_norm(out, held, base, low, b, active, gain.to(DEVICE), 1e-6, early=is_early)
        assert_rounded_alike(held, after)
        assert_rounded_alike(out, truth)
    assert fits(1536, 16) and fits(4096, 16) and not fits(4096, 32)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("width", "rank"), [(32, 16), (64, 1), (128, 80)])
def test_triton_rotary(width: int, rank: int, kind: torch.dtype) -> None:
    """Queries rotated in float64, keys and values in their places, and nowhere else."""
    from rlkit.generation.vllm.accel.lora_kernels import tiling
    from rlkit.generation.vllm.accel.rotary_kernel import expand_rotate_store, fits

    heads, kv_heads, rows, block = 3, 2, 19, 4
    widths = (heads * width, kv_heads * width, kv_heads * width)
    base, low, b, active, y = case(rows, widths, rank, kind)
    positions = torch.randint(0, 50, (rows,))
    angles = torch.randn(50, width // 2, dtype=torch.float64)
    table = torch.cat([angles.cos(), angles.sin()], 1).to(kind)
    # The last row is padding without a slot, the one before has none either.
    slots = torch.randperm(8 * block)[: rows - 1]
    slots[-1] = -1
    kept = rows - 2
    cosine, sine = table[positions].double()[:, None].chunk(2, -1)
    q, k, v = (part.view(rows, -1, width) for part in torch.split(y.double(), [*widths], 1))

    def turned(part: Tensor) -> Tensor:
        first, second = part.chunk(2, -1)
        both = first * cosine - second * sine, second * cosine + first * sine
        return torch.cat(both, -1).to(kind)

    early = not INTERPRETED and torch.cuda.get_device_capability()[0] >= 9
    for is_early in {False, early}:
        cache = torch.full((8, 2, block, kv_heads, width), -7.0, dtype=kind, device=DEVICE)
        out = base.new_full((rows, widths[0]), float("nan"))
        expand_rotate_store(
            out, (cache[:, 0], cache[:, 1]), base, low, b, active, positions.to(DEVICE),
            table.to(DEVICE), slots.to(DEVICE), (heads, kv_heads),
            tiling(rows, widths, early=is_early),
        )  # fmt: skip
        assert_rounded_alike(out, turned(q).flatten(1))
        stored = cache.transpose(0, 1).flatten(1, 2).cpu()
        for found, truth in zip(stored, (turned(k), v.to(kind)), strict=True):
            assert_rounded_alike(found[slots[:kept]].flatten(1), truth[:kept].flatten(1))
            empty = torch.ones(8 * block, dtype=torch.bool)
            empty[slots[:kept]] = False
            assert (found[empty] == -7.0).all()
    assert fits(64) and fits(128) and not fits(96) and not fits(16)


@pytest.mark.parametrize("scale", [2.0, 0.3])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_triton_copy_is_foreach_bit_for_bit(kind: torch.dtype, scale: float) -> None:
    from rlkit.generation.vllm.accel.lora_kernels import CopyTable

    torch.manual_seed(1)
    sources = [torch.randn(*s, device=DEVICE) for s in ((5, 70), (70, 5), (100, 100), (1, 3))]
    buffers = [torch.full((s.shape[0], s.shape[1] + 11), 7.0, device=DEVICE) for s in sources]
    buffers = [buffer.to(kind) for buffer in buffers]
    targets = [b[:, : s.shape[1]] for b, s in zip(buffers, sources, strict=True)]
    scaled = [False, True, True, False]
    table = CopyTable(sources, targets, scaled)
    for _ in range(2):  # what changes in place is copied anew
        table.copy(scale)
        for source, target, is_scaled in zip(sources, targets, scaled, strict=True):
            expected = torch._foreach_mul([source], scale if is_scaled else 1.0)[0].to(kind)
            assert torch.equal(target, expected)
        for source in sources:
            source.mul_(-1.7)
    assert all((buffer[:, -11:] == 7.0).all() for buffer in buffers)


def test_triton_copy_knows_its_sources() -> None:
    from rlkit.generation.vllm.accel.lora_kernels import CopyTable, fits

    sources = [torch.randn(6, 6, device=DEVICE) for _ in range(3)]
    targets = [torch.zeros(6, 6, device=DEVICE) for _ in range(3)]
    table = CopyTable(sources, targets, [False] * 3)
    assert table.reads(sources)
    assert table.reads([source.view(6, 6) for source in sources])  # others for the same memory
    assert not table.reads([*sources[:2], sources[2].clone()])
    assert not table.reads([*sources[:2], sources[2].view(4, 9)])
    assert not table.reads([*sources[:2], sources[2].T])
    assert not table.reads([*sources[:2], sources[2].view(torch.int32)])
    assert not table.reads(sources[:2])
    sources[1].data = sources[1].data.T  # the same object and address, another layout
    assert not table.reads(sources)
    assert not fits(sources, targets)
    with pytest.raises(ValueError, match="must be dense"):
        CopyTable(sources, targets, [False] * 3)


def test_triton_column_block() -> None:
    from rlkit.generation.vllm.accel.lora_kernels import column_block

    assert column_block((1536, 256, 256)) == 128
    assert column_block((576, 192, 192)) == 64
    for widths in ((100,), (64, 64, 64, 64)):
        with pytest.raises(ValueError, match="at most 3 parts with multiples of 16"):
            column_block(widths)
