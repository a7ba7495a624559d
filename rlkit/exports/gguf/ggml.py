"""Quantise rows with ggml's own function, in the prebuilt library of the package xllamacpp.

The package has no binding for it, but its library exports it:

    size_t ggml_quantize_chunk(enum ggml_type, const float *, void *, int64 start, int64 rows,
                               int64 row width, const float *importance)

ctypes lets go of the interpreter during the call, so rows are spread over threads.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from rlkit.runtime.distribution import how_to_install

_AT_ONCE = 2**17
"""Weights of one call, some 25 ms of K-quants; small layers are shared by many cores, too."""


def require_xllamacpp(asked_by: str) -> None:
    """Raise ValueError, with the command that helps, unless the package is installed."""
    if find_spec("xllamacpp") is None:
        raise ValueError(
            f"{asked_by} must have xllamacpp, which quantises and loads GGUF files "
            f"({how_to_install('xllamacpp')}), got no xllamacpp"
        )


def num_bytes(shape: tuple[int, ...], kind: Type) -> int:
    """Return the bytes of a tensor of `shape` in the type `kind`."""
    block, size = GGML_QUANT_SIZES[kind]
    weights = int(np.prod(shape, dtype=np.int64))
    return weights // block * size


def quantised(rows: NDArray[np.float32], kind: Type) -> NDArray[np.uint8]:
    """Return rows (N, W) of float32 in the type `kind`, N rows of bytes.

    Raises ValueError when a row is no whole number of blocks.
    """
    block, size = GGML_QUANT_SIZES[kind]
    count, width = rows.shape
    if width % block:
        raise ValueError(f"rows of {kind.name} must be a multiple of {block}, got {width}")
    source = np.ascontiguousarray(rows, dtype=np.float32)
    out = np.empty((count, width // block * size), dtype=np.uint8)
    step = max(1, _AT_ONCE // width)

    def work(first: int) -> None:
        some = source[first : first + step]
        target = out[first : first + step]
        written = _quantize_chunk()(
            int(kind), some.ctypes.data, target.ctypes.data, 0, len(some), width, None
        )
        if written != target.nbytes:
            raise ValueError(f"ggml must write {target.nbytes} bytes of {kind.name}, got {written}")

    _quantize_chunk()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(work, range(0, count, step)))
    return out


@cache
def _quantize_chunk() -> Any:
    spec = find_spec("xllamacpp")
    assert spec is not None and spec.origin is not None
    (library,) = Path(spec.origin).parent.glob("xllamacpp*.so")
    function = ctypes.CDLL(str(library)).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    int64, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, pointer, int64, int64, int64, pointer]
    return function
