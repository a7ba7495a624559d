"""Bytes of ggml's quantisation against gguf's own, and the mixtures against real files."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

from rlkit.exports.gguf.ggml import num_bytes, quantised
from rlkit.exports.gguf.mixture import TensorPlace, type_of

ROWS = np.random.default_rng(0).normal(size=(300, 512)).astype(np.float32)


@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_0, Type.Q5_0, Type.Q5_1])
def test_bytes_are_those_of_the_package_gguf(kind: Type) -> None:
    found = quantised(ROWS, kind)
    assert found.nbytes == num_bytes(ROWS.shape, kind)
    assert np.array_equal(found, quantize(ROWS, kind))


@pytest.mark.parametrize(
    ("kind", "error"),
    # Relative errors of normal numbers, measured with llama.cpp 0.3.36 (users.md, section 4).
    [(Type.Q4_K, 0.0715), (Type.Q5_K, 0.036), (Type.Q6_K, 0.018)],
)
def test_k_quants_lose_what_llama_cpp_loses(kind: Type, error: float) -> None:
    again = dequantize(quantised(ROWS, kind), kind)
    found = float(np.linalg.norm(again - ROWS) / np.linalg.norm(ROWS))
    assert found == pytest.approx(error, rel=0.1)


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of Q4_K must be a multiple of 256, got 64"):
        quantised(ROWS[:, :64], Type.Q4_K)


def _types(wanted: str, leaf: str, layers: int) -> list[Type]:
    places = (
        TensorPlace(f"blk.{i}.{leaf}.weight", (512, 512), layers, True) for i in range(layers)
    )
    return [type_of(place, wanted) for place in places]


def test_half_of_the_value_and_down_projections_get_six_bits() -> None:
    """The layers of 32 that have Q6_K in published q4_k_m files of Llama-3-8B."""
    more = {0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31}
    expected = [Type.Q6_K if i in more else Type.Q4_K for i in range(32)]
    for leaf in ("attn_v", "ffn_down"):
        assert _types("q4_k_m", leaf, 32) == expected
        assert _types("q4_k_m", leaf, 4) == [Type.Q4_K, Type.Q4_K, Type.Q6_K, Type.Q6_K]
    assert set(_types("q4_k_m", "attn_q", 32)) == {Type.Q4_K}
    assert set(_types("q5_k_m", "attn_qkv", 32)) == {Type.Q6_K}
    assert set(_types("q6_k", "ffn_down", 32)) == {Type.Q6_K}


@pytest.mark.parametrize(
    ("name", "width", "wanted", "expected"),
    [
        ("token_embd.weight", 512, "q4_k_m", Type.Q6_K),
        ("token_embd.weight", 576, "q4_k_m", Type.Q8_0),
        ("token_embd.weight", 512, "q8_0", Type.Q8_0),
        ("blk.0.attn_q.weight", 576, "q4_k_m", Type.Q5_0),
        ("blk.0.attn_q.weight", 576, "q5_k_m", Type.Q5_1),
        ("blk.0.attn_q.weight", 576, "q6_k", Type.Q8_0),
        ("blk.0.attn_q.weight", 48, "q8_0", Type.F16),
        ("blk.0.attn_norm.weight", 0, "q4_k_m", Type.F32),
    ],
)
def test_special_places(name: str, width: int, wanted: str, expected: Type) -> None:
    shape = (512, width) if width else (512,)
    assert type_of(TensorPlace(name, shape, 8, True), wanted) is expected
