"""Modules that hold Triton kernels take Triton from here; without it, the error names the extra."""

from __future__ import annotations

from rlkit.runtime.distribution import lacks

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor
except ModuleNotFoundError as error:
    raise lacks("triton", "a kernel of rlkit") from error

__all__ = ["TensorDescriptor", "tl", "triton"]
