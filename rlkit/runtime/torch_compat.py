"""This module names every private name of torch that rlkit uses, outside of the vLLM generator.

Names without a substitute are required when this module is imported. The others have a public
way that is slower or takes more memory, and that is used where torch lacks them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlkit.runtime import flash3
from rlkit.runtime.private_names import find, require_names

require_names(
    "torch",
    "torch.utils._python_dispatch:TorchDispatchMode",
    "torch.utils._pytree:tree_leaves",
    "torch:UntypedStorage._cdata",
    "torch:Tensor._version",
)

from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves as tree_leaves  # noqa: E402

# The next three launch one kernel for a list of tensors, where a loop launches one per tensor.


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Write each tensor of `sources` into its neighbour of `targets`, dtypes converted."""
    copy: Callable[..., None] | None = find("torch:_foreach_copy_")
    if copy is not None:
        copy(list(targets), list(sources))
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def scale_all_(tensors: Sequence[Tensor], scale: float) -> None:
    """Multiply each tensor by `scale` in place."""
    multiply: Callable[..., None] | None = find("torch:_foreach_mul_")
    if multiply is not None:
        multiply(list(tensors), scale)
        return
    for tensor in tensors:
        tensor.mul_(scale)


def scaled_all(tensors: Sequence[Tensor], scale: float) -> list[Tensor]:
    """Return the product of each tensor and `scale`, in the tensor's dtype."""
    multiply: Callable[..., Sequence[Tensor]] | None = find("torch:_foreach_mul")
    return [x * scale for x in tensors] if multiply is None else list(multiply(tensors, scale))


def norms_all(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the 2-norm of each tensor."""
    norm: Callable[..., Sequence[Tensor]] | None = find("torch:_foreach_norm")
    if norm is not None:
        return list(norm(list(tensors)))
    return [torch.linalg.vector_norm(tensor) for tensor in tensors]


def times_written(tensor: Tensor) -> int:
    """Return how often the tensor was written in place, as autograd counts it."""
    return tensor._version


def storage_key(storage: torch.UntypedStorage) -> int:
    """Return a number that all Python objects of one live storage share, on meta as well."""
    return int(storage._cdata)


def let_cuda_segments_grow() -> bool:
    """Have CUDA's allocator map memory as it needs it; returns whether torch could be told.

    Without it sequences of different lengths leave holes that the memory plan cannot foresee.
    """
    # The first is torch's own successor of the second.
    for place in (
        "torch:_C._accelerator_setAllocatorSettings",
        "torch.cuda.memory:_set_allocator_settings",
    ):
        tell: Callable[[str], object] | None = find(place)
        if tell is not None:
            tell("expandable_segments:True")
            return True
    return False


def nvml_index(device: int) -> int | None:
    """Return the driver's number of the CUDA device `device` of torch; None when torch lacks it.

    No CUDA context is made.
    """
    lookup: Callable[[int], int] | None = find("torch.cuda:_get_nvml_device_index")
    return None if lookup is None else lookup(device)


class _Operator(NamedTuple):
    """rlkit gives an operator these arguments and takes these results."""

    name: str
    num_positional: int
    keywords: tuple[str, ...]
    num_results: int


_WINDOW = ("scale", "window_size_left", "window_size_right")
_FLASH = (
    _Operator("_flash_attention_forward", 10, _WINDOW, 5),
    _Operator("_flash_attention_backward", 14, _WINDOW, 3),
)


@cache
def has_flash_operators() -> bool:
    """Return whether FlashAttention's two operators take and return what rlkit expects of them."""
    return all(map(_is_as_expected, _FLASH))


def _is_as_expected(operator: _Operator) -> bool:
    schema: Any = find(f"torch.ops:aten.{operator.name}.default._schema")
    if schema is None:
        return False
    positional = [a for a in schema.arguments if not a.kwarg_only]
    optional = {a.name: a.has_default_value() for a in schema.arguments if a.kwarg_only}
    return (
        len(positional) == operator.num_positional
        and optional.keys() >= set(operator.keywords)
        and all(optional.values())
        and len(schema.returns) == operator.num_results
    )


def flash_forward(
    qkv: tuple[Tensor, Tensor, Tensor],
    shape: tuple[Tensor, Tensor, int, int],
    *,
    scale: float,
    left: int,
) -> tuple[Tensor, ...]:
    """Return causal FlashAttention over ragged sequences, only where `has_flash_operators()`.

    Args:
        qkv: queries (T, H, d), keys and values (K, H', d).
        shape: int32 ends of the queries and keys of each sequence, and the largest numbers of both.
        scale: factor of the scores.
        left: keys seen to the left of a query's own; -1 for all.

    Returns:
        Output (T, H, d), log-sum-exp, and two tensors of dropout's state for `flash_backward`.
    """
    third = flash3.forward_of(qkv[0], flash_two)
    if third is None:
        return flash_two(qkv, shape, scale=scale, left=left)
    out, lse = third(qkv, shape, scale=scale, left=left)
    # Without dropout the backward pass takes its state and does not look at it.
    return out, lse, lse.new_empty(2, dtype=torch.uint64), lse.new_empty((), dtype=torch.uint64)


def flash_two(
    qkv: tuple[Tensor, Tensor, Tensor],
    shape: tuple[Tensor, Tensor, int, int],
    *,
    scale: float,
    left: int,
) -> tuple[Tensor, ...]:
    """Return the same by FlashAttention 2, which torch has.

    Args:
        qkv: The argument of `flash_forward`.
        shape: The argument of `flash_forward`.
        scale: The argument of `flash_forward`.
        left: The argument of `flash_forward`.

    Returns:
        The results of `flash_forward`.
    """
    found: tuple[Tensor, ...] = torch.ops.aten._flash_attention_forward(
        *qkv, *shape, 0.0, True, False,
        scale=scale, window_size_left=left, window_size_right=0,
    )  # fmt: skip
    return found[:4]


def flash_backward(
    grad: Tensor,
    saved: Iterable[Tensor],
    shape: tuple[Tensor, Tensor, int, int],
    *,
    scale: float,
    left: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of queries, keys and values.

    Args:
        grad: The gradient of the output, (T, H, d).
        saved: Queries, keys, values and the four results of `flash_forward`.
        shape: The argument as given to `flash_forward`.
        scale: The argument as given to `flash_forward`.
        left: The argument as given to `flash_forward`.

    Returns:
        Three gradients in the shapes of queries, keys and values.
    """
    q, k, v, out, lse, seed, offset = saved
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        grad.contiguous(), q, k, v, out, lse, *shape, 0.0, True, seed, offset,
        scale=scale, window_size_left=left, window_size_right=0,
    )  # fmt: skip
    return found
