"""Which implementations and devices the kernel tests run on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from triton_places import INTERPRETED


def _places() -> list[object]:
    places: list[object] = [pytest.param(("torch", "cpu"), id="torch-cpu")]
    if INTERPRETED:
        places.append(pytest.param(("triton", "cpu"), id="triton-interpreted"))
        places.append(pytest.param(("triton", "cpu"), id="triton-interpreted-pointers"))
    elif torch.cuda.is_available():
        places += [
            pytest.param((impl, "cuda"), id=f"{impl}-cuda", marks=pytest.mark.gpu)
            for impl in ("torch", "triton")
        ]
    return places


def _mend_interpreter() -> None:
    """Triton 3.6's interpreter: scalars as Python ints under numpy 2.4, tl.dot of bfloat16 (it
    multiplies the bits as integers), rounding to bfloat16 (it truncates; GPUs round), and a third
    of its time (every call inside a kernel patches the whole language again)."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    patch, dot, cast = interpreter._patch_lang_tensor, builder.create_dot, builder.cast_impl

    def patch_scalars(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def widened(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        bits = x.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def wide_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), *rest)

    def rounding_cast(self: Any, x: Any, to: Any) -> Any:
        if (x.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, x, to)
        bits = torch.tensor(x.data).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(bits, tl.bfloat16)

    patch_language, patched = interpreter._patch_lang, set[int]()

    def patch_once(function: Any) -> Any:
        modules = {id(x) for x in function.__globals__.values() if x is tl or x is tl.core}
        if not modules <= patched:
            patch_language(function)  # for good: nothing is compiled in this process
            patched.update(modules)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once
    interpreter._patch_lang_tensor = patch_scalars
    builder.create_dot, builder.cast_impl = wide_dot, rounding_cast
    builder.create_fp_trunc = lambda self, x, to: self.cast_impl(x, to)


if INTERPRETED:
    _mend_interpreter()

    @pytest.fixture(autouse=True)
    def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """Several ragged tiles per test, and a faster interpreter."""
        from rlkit.kernels import _logps_launch
        from rlkit.kernels.tilings import Tiling

        tiling = Tiling(
            block_m=64,
            block_n=128,
            block_k=32,
            group_m=2,
            descriptors="pointers" not in request.node.name,
        )
        monkeypatch.setattr(_logps_launch, "_INTERPRETED", tiling)


@pytest.fixture(params=_places())
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    """(implementation, device)."""
    return request.param  # type: ignore[no-any-return]
