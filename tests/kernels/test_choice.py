"""Each card gets its kernels; tests say which, and what happens where they do not run."""

from __future__ import annotations

import logging

import pytest
import torch
from triton_places import INTERPRETED

from rlkit.kernels import _self_test, lm_head
from rlkit.kernels.logps import Impl, selected_logps
from rlkit.kernels.tilings import HOPPER, Tiling, forced, tiling_of
from rlkit.kernels.workspace import fused_row_bytes, logps_workspace_bytes
from rlkit.models.layout import flash_trains

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "descriptors", "tile"),
    [
        ((8, 0), False, (128, 256, 64)),
        ((8, 6), False, (128, 128, 64)),
        ((8, 7), False, (128, 256, 64)),
        ((8, 9), False, (128, 128, 64)),
        ((9, 0), True, (128, 256, 64)),
        ((10, 0), True, (128, 256, 64)),
        ((10, 3), True, (128, 256, 64)),
        ((12, 0), True, (128, 128, 64)),
        ((12, 1), True, (128, 128, 64)),
    ],
)
def test_each_card_has_one_tiling(
    capability: tuple[int, int], descriptors: bool, tile: tuple[int, int, int]
) -> None:
    tiling = tiling_of(capability)
    assert tiling is not None
    assert (tiling.descriptors, tiling[:3]) == (descriptors, tile)
    assert tiling.arch is None


@pytest.mark.parametrize("capability", [(7, 0), (7, 5), (13, 0)])
def test_other_cards_have_none(capability: tuple[int, int]) -> None:
    assert tiling_of(capability) is None


def test_only_instructions_that_other_cards_run_are_forced() -> None:
    assert forced((8, 9)) == tiling_of((8, 9))._replace(arch="sm89")  # type: ignore[union-attr]
    for capability in ((7, 5), (10, 0)):
        with pytest.raises(ValueError, match=r"capability must be 8\.x, 9\.x or 12\.x"):
            forced(capability)


@pytest.mark.parametrize(
    ("head_dim", "capability", "trains"),
    [
        (128, (7, 5), False),
        (128, (8, 0), True),
        (192, (8, 6), True),
        (200, (8, 6), False),
        (224, (8, 9), False),
        (224, (12, 0), False),
        (256, (12, 0), True),
        (224, (8, 0), True),
        (224, (9, 0), True),
        (224, (10, 0), True),
    ],
)
def test_flash_attention_of_wide_heads(
    head_dim: int, capability: tuple[int, int], trains: bool
) -> None:
    assert flash_trains(head_dim, capability) == trains


def test_a_forced_tiling_needs_the_fused_path() -> None:
    hidden, weight = torch.zeros(3, 8), torch.zeros(9, 8)
    targets = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="tiling must be None unless impl is auto or triton"):
        selected_logps(hidden, weight, targets, impl=Impl.torch, tiling=HOPPER)


def test_products_without_wide_results_are_float32_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_head, "_SLAB", 40)  # several slabs, the last ragged
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 16, generator=generator), torch.randn(16, 7, generator=generator)
    a, b = a.bfloat16(), b.bfloat16()
    found = lm_head._matmul_in_float32(a, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), a.double() @ b.double(), atol=1e-5, rtol=1e-5)


def test_workspace_of_llama_8b_by_hand() -> None:
    """128256 words are 501 tiles of 256 and 2004 rows of 64: two numbers a tile, E and E W."""
    row = 8 * (501 + 2) + 2 * 128256 + 4 * 4096
    assert fused_row_bytes(128256, 4096, HOPPER, store=True) == row
    assert logps_workspace_bytes(10, 128256, 4096, dtype=torch.bfloat16) == 10 * row
    assert logps_workspace_bytes(10, 128256, 4096, dtype=torch.float32) == 10 * 12 * 128256


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is a path of an A100, which the machine of the tests is not."""
    _self_test.fused_runs.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("found", "runs", "line"),
    [
        ((1e-6, 2e-3), True, None),
        ((0.5, 2e-3), False, "missed the chunked path by 5.0e-01 nats"),
        ((1e-6, float("nan")), False, "their gradients by nan"),
        (RuntimeError("out of resource: shared memory\nmore"), False, "RuntimeError: out of res"),
    ],
)
def test_one_line_says_why_the_chunked_path_is_used(
    found: tuple[float, float] | Exception,
    runs: bool,
    line: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def errors(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(_self_test, "errors", errors)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert _self_test.fused_runs(CPU, torch.bfloat16) == runs
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (0 if line is None else 1)
    assert all(line is not None and line in text and "\n" not in text for text in lines)


@pytest.mark.usefixtures("asked")
def test_a_card_without_a_tiling_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with caplog.at_level(logging.WARNING):
        assert not _self_test.fused_runs(CPU, torch.float16)
    assert "no tiling for compute capability 7.5" in caplog.text


@pytest.mark.skipif(not INTERPRETED, reason="test_interpreter.py")
@pytest.mark.parametrize("descriptors", [True, False], ids=["descriptors", "pointers"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_self_test_tells_right_from_wrong_in_triton(
    dtype: torch.dtype, descriptors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from rlkit.kernels import _logps_launch, _logps_triton

    tiling = Tiling(block_m=64, block_n=128, block_k=32, group_m=2, descriptors=descriptors)
    logps, gradient = _self_test.errors(CPU, dtype, tiling)
    assert logps < 2e-5
    assert gradient < 6e-3
    # An anchor that is off by 0.01 nats shifts every logp by less than that, and is seen.
    anchor = _logps_launch.anchor

    def shifted(*arguments: object) -> object:
        chunk = anchor(*arguments)  # type: ignore[arg-type]
        return chunk._replace(anchors=chunk.anchors + 0.0144)

    monkeypatch.setattr(_logps_triton, "anchor", shifted)
    logps, _ = _self_test.errors(CPU, dtype, tiling)
    assert 1e-3 < logps < 0.0101


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("capability", [None, (8, 0), (8, 9), (12, 0)], ids=str)
def test_instructions_of_other_cards_agree_with_the_chunked_path(
    capability: tuple[int, int] | None, dtype: torch.dtype
) -> None:
    """On Hopper, which runs them all; `errors` covers both passes."""
    tiling = None if capability is None else forced(capability)
    logps, gradient = _self_test.errors(torch.device("cuda", 0), dtype, tiling)
    assert logps < 3e-5
    assert gradient < (6e-3 if dtype is torch.bfloat16 else 1e-3)
