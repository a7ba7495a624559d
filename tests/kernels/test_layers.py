"""The kernels between the matmuls against transformers' own modules, values and gradients.

On a GPU, and on a CPU in Triton's interpreter (tests/kernels/test_interpreter.py).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers.activations import ACT2FN
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
    apply_rotary_pos_emb,
)
from triton_places import on_triton_device

from rlkit.kernels.layers import rms_norm, rows_of, swiglu, swiglu_joined, takes, uses_of
from rlkit.kernels.rotary import rotary, split_heads

pytestmark = on_triton_device
DTYPES = [torch.bfloat16, torch.float16]


def noise(*shape: int, device: str, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2.0 * torch.randn(shape, generator=generator)).to(device, dtype)


def gradients(function: Callable[..., Tensor], inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dy.to(out.dtype))]


def assert_as_exact_as_eager(
    actual: list[Tensor], eager: list[Tensor], exact: list[Tensor]
) -> None:
    """No further from float64 than transformers' 16-bit code, up to one rounding of the result."""
    for ours, theirs, truth in zip(actual, eager, exact, strict=True):
        scale = truth.abs().max()
        error = (ours.double() - truth).abs().max() / scale
        limit = (theirs.double() - truth).abs().max() / scale
        assert error <= limit + torch.finfo(ours.dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 37, 96), (5, 72, 136), (3, 2100)], ids=str)
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    norm = Qwen2RMSNorm(shape[-1], eps=1e-6).to(device, dtype)
    weight = noise(shape[-1], device=device, dtype=dtype, seed=1)
    x, dy = (noise(*shape, device=device, dtype=dtype, seed=s) for s in (2, 3))

    def eager(x: Tensor, weight: Tensor) -> Tensor:
        out: Tensor = functional_call(norm, {"weight": weight}, (x,))
        return out

    def exact(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    assert_as_exact_as_eager(
        gradients(lambda x, weight: rms_norm(x, weight, 1e-6), [x, weight], dy),
        gradients(eager, [x, weight], dy),
        gradients(exact, [x.double(), weight.double()], dy),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 7, 64), (3, 1000)], ids=str)
def test_swiglu(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    activation = ACT2FN["silu"]
    gate, up, dy = (noise(*shape, device=device, dtype=dtype, seed=s) for s in (1, 2, 3))

    def eager(gate: Tensor, up: Tensor) -> Tensor:
        out: Tensor = activation(gate) * up
        return out

    ours = gradients(swiglu, [gate, up], dy)
    theirs = gradients(eager, [gate, up], dy)
    exact = gradients(eager, [gate.double(), up.double()], dy)
    assert_as_exact_as_eager(ours, theirs, exact)
    out, grad = gradients(swiglu_joined, [torch.cat([gate, up], -1)], dy)
    assert torch.equal(out, ours[0])
    assert torch.equal(grad, torch.cat(ours[1:], -1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_heads", [1, 2, 3, 12])
def test_rotary(num_heads: int, dtype: torch.dtype, device: str) -> None:
    """In a strided view as the projections give it, and with a gradient of any layout."""
    config = Qwen2Config(hidden_size=48 * 4, num_attention_heads=4)
    positions = torch.tensor([[0, 1, 5, 2, 900]], device=device)
    width = 48
    wide = noise(5, num_heads + 2, width, device=device, dtype=dtype)
    cos, sin = Qwen2RotaryEmbedding(config).to(device)(wide, positions)
    x = wide[:, 1:-1]
    dy = noise(width, num_heads, 5, device=device, dtype=dtype, seed=4).permute(2, 1, 0)

    def eager(x: Tensor) -> Tensor:
        query = x.transpose(0, 1)[None]
        out: Tensor = apply_rotary_pos_emb(query, query, cos, sin)[0]
        return out[0].transpose(0, 1)

    ours = gradients(lambda x: rotary(x, cos[0], sin[0]), [x], dy)
    theirs = gradients(eager, [x], dy)
    cos, sin = cos.double(), sin.double()
    exact = gradients(eager, [x.double()], dy)
    assert_as_exact_as_eager(ours, theirs, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize(("num_queries", "num_kv"), [(1, 1), (6, 2), (5, 5)])
def test_split_heads_is_rotary_of_each_part(
    num_queries: int, num_kv: int, rotates: bool, dtype: torch.dtype, device: str
) -> None:
    """Bit for bit, and `rotary` is compared with transformers above."""
    width, num_tokens = 24, 5
    config = Qwen2Config(hidden_size=width * 4, num_attention_heads=4)
    positions = torch.tensor([[0, 1, 5, 2, 900]], device=device)
    x = noise(num_tokens, (num_queries + 2 * num_kv) * width, device=device, dtype=dtype)
    cos, sin = (t[0] for t in Qwen2RotaryEmbedding(config).to(device)(x, positions))
    widths = [num_queries * width, num_kv * width, num_kv * width]

    def joined(x: Tensor) -> Tensor:
        tables = (cos, sin) if rotates else None
        parts = split_heads(x, tables, num_kv=num_kv, width=width)
        return torch.cat([part.permute(2, 1, 0) for part in parts], dim=1)

    def apart(x: Tensor) -> Tensor:
        parts = [p.view(num_tokens, -1, width) for p in torch.split(x, widths, dim=1)]
        turned = [rotary(p, cos, sin) if rotates and i < 2 else p for i, p in enumerate(parts)]
        return torch.cat([part.permute(2, 1, 0) for part in turned], dim=1)

    dy = noise(width, num_queries + 2 * num_kv, num_tokens, device=device, dtype=dtype, seed=4)
    for a, b in zip(gradients(joined, [x], dy), gradients(apart, [x], dy), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of(dtype: torch.dtype, device: str) -> None:
    """Rows used often, once and never; the gradient is rounded once."""
    index = torch.tensor([3, 0, 0, 5, 3, 3, 1, 0, 6], device=device)
    x = noise(8, 2, 40, device=device, dtype=dtype)
    dy = noise(9, 2, 40, device=device, dtype=dtype, seed=1)
    uses = uses_of(index, 8)
    out, grad = gradients(lambda x: rows_of(x, index, uses), [x], dy)
    assert torch.equal(out, x[index])
    expected = torch.zeros(8, 2, 40, dtype=torch.float64, device=device)
    for place, row in enumerate(index.tolist()):
        expected[row] += dy[place]
    assert torch.equal(grad, expected.to(dtype))


def test_what_is_not_for_the_kernels_is_left_alone(device: str) -> None:
    assert not takes(torch.zeros(2, 8))
    assert not takes(torch.zeros(2, 8, dtype=torch.bfloat16))
    assert takes(torch.zeros(2, 8, dtype=torch.bfloat16, device="meta"))
    assert not takes(torch.zeros(2, 2**15, dtype=torch.bfloat16, device="meta"))
    assert device
