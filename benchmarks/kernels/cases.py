"""The cases of the benchmark: shapes, data, operations, and the float64 truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.kernels.peers import Entry, Transform
from rlkit.kernels.compact import compact
from rlkit.kernels.kl import kl_exact
from rlkit.kernels.logps import EntropyMode


class Shape(NamedTuple):
    rows: int
    hidden: int
    words: int
    softcap: float | None = None

    @property
    def operations(self) -> int:
        """Return the operations of one matmul: 2 N V D."""
        return 2 * self.rows * self.hidden * self.words


SHAPES = {
    "P1": Shape(16384, 1536, 151936),
    "P2": Shape(16384, 4096, 128256),
    "P3": Shape(163840, 4096, 128256),
    "S1": Shape(4096, 2048, 151936),
    "S2": Shape(8192, 3584, 152064),
    "S3": Shape(2048, 4096, 128256),
    "G": Shape(8192, 2304, 256000, softcap=30.0),
    "odd": Shape(5000, 1536, 50257),
}
"""Qwen2.5-1.5B, Llama-3.1-8B at 16 K and 160 K tokens, smaller batches, Gemma-2-2B, ragged."""

OPS = {
    "forward": (1, EntropyMode.none),
    "forward+entropy": (1, EntropyMode.value),
    "fwd+bwd": (2, EntropyMode.none),
    "fwd+bwd+entropy": (2, EntropyMode.value),
    "fwd+bwd+entropy grad": (3, EntropyMode.differentiable),
    "trainable head": (4, EntropyMode.none),
    "exact KL": (3, EntropyMode.none),
    "fwd+bwd, 40% masked": (1.2, EntropyMode.none),
    "fwd+bwd, 30% of gradients": (2, EntropyMode.none),
}
"""Operation -> the fewest matmuls it needs, and what it wants of the entropy.

Masked rows are taken out before, by `compact`, which is part of the time; in the last row 70 % of
the tokens have an upstream gradient of zero, as with clipped ratios.
"""

_OURS_ALONE = ("exact KL", "fwd+bwd, 40% masked")
"""Compared with nothing: no peer has the first, and any caller can compact."""


class Data(NamedTuple):
    hidden: Tensor
    weight: Tensor
    targets: Tensor
    upstream: Tensor


def make_data(
    shape: Shape, seed: int = 0, *, dtype: torch.dtype = torch.bfloat16, device: str = "cuda"
) -> Data:
    """Normal weights; hidden states whose targets have p_y from 1e-6 to 1 - 1e-4.

    Args:
        shape: N, D and V.
        seed: Of the generator.
        dtype: Of hidden states and weights.
        device: Where they lie.

    Returns:
        Hidden states, weights, targets and upstream gradients.
    """
    n, d, v = shape[:3]
    gen = torch.Generator(device).manual_seed(seed)
    weight = torch.randn(v, d, generator=gen, device=device).mul_(d**-0.5).to(dtype)
    targets = torch.randint(v, (n,), generator=gen, device=device)
    hidden = torch.empty(n, d, device=device, dtype=dtype)
    for start in range(0, n, 16384):
        rows = slice(start, min(start + 16384, n))
        size = rows.stop - rows.start
        pull = 18 + 4 * torch.randn(size, 1, generator=gen, device=device)
        noise = 2 * torch.randn(size, d, generator=gen, device=device)
        hidden[rows] = (pull * weight[targets[rows]].float() + noise).to(dtype)
    return Data(hidden, weight, targets, torch.randn(n, generator=gen, device=device))


def operation(name: str, entry: Entry, data: Data, transform: Transform) -> Callable[[], object]:
    """A closure that performs operation `name` of `OPS` once."""
    mode = OPS[name][1]
    if name.startswith("forward"):

        def forward() -> object:
            with torch.no_grad():
                return entry(data.hidden, data.weight, data.targets, mode, transform)

        return forward
    if name == "exact KL":
        return _exact_kl(data, transform)
    weight = data.weight
    if name == "trainable head":
        weight = weight.detach().requires_grad_()
    upstream = data.upstream
    if name == "fwd+bwd, 30% of gradients":
        upstream = upstream * _some_rows(data, 0.3)
    kept = _some_rows(data, 0.6)[None] if name == "fwd+bwd, 40% masked" else None

    def step() -> object:
        leaf = data.hidden.detach().requires_grad_()
        hidden, targets, above = leaf, data.targets, upstream
        if kept is not None:
            hidden, targets, above = (compact(x[None], kept) for x in (leaf, targets, above))
        logps, h = entry(hidden, weight, targets, mode, transform)
        above = above.to(logps.dtype) if logps.dim() else above.sum().to(logps.dtype)
        if mode == EntropyMode.differentiable and h is not None:
            torch.autograd.backward((logps, h), (above, above))
        else:
            torch.autograd.backward(logps, above)
        weight.grad = None
        return leaf.grad

    return step


def _exact_kl(data: Data, transform: Transform) -> Callable[[], object]:
    def step() -> object:
        hidden = data.hidden.detach().requires_grad_()
        kl = kl_exact(
            hidden,
            data.hidden.roll(1, 1),
            data.weight,
            direction="reverse",
            temperature=transform.temperature,
            softcap=transform.softcap,
        )
        torch.autograd.backward(kl, data.upstream)
        return hidden.grad

    return step


def _some_rows(data: Data, share: float) -> Tensor:
    gen = torch.Generator("cuda").manual_seed(1)
    return torch.rand(len(data.targets), generator=gen, device="cuda") < share


def offers(peer: str, op: str, with_entropy: set[str]) -> bool:
    """Whether `peer` is measured on `op`."""
    if op in _OURS_ALONE:
        return peer == "rlkit triton"
    return OPS[op][1] == EntropyMode.none or peer in with_entropy


class Truth(NamedTuple):
    rows: Tensor
    logps: Tensor
    jacobian: Tensor


def truth(data: Data, transform: Transform, num_rows: int = 512) -> Truth:
    """float64 logps and their gradients for some rows, the target left out of every sum."""
    num_rows = min(num_rows, len(data.targets))
    steps = torch.arange(num_rows, device=data.targets.device)
    rows = steps * (len(data.targets) // num_rows)
    weight = data.weight.double()
    y = data.targets[rows, None]
    z = data.hidden[rows].double() @ weight.T
    slope = torch.ones_like(z)
    if transform.softcap is not None:
        capped = torch.tanh_(z / transform.softcap)
        slope = 1 - capped**2
        z = capped * transform.softcap
    z = z / transform.temperature
    z_y = z.gather(1, y)
    odds = z.scatter(1, y, -torch.inf).logsumexp(1, keepdim=True) - z_y
    others = (z - z_y - odds).scatter(1, y, -torch.inf).exp_() * slope
    pull = slope.gather(1, y) * weight[y.squeeze(1)]
    jacobian = torch.sigmoid(odds) * (pull - others @ weight) / transform.temperature
    logps = -torch.nn.functional.softplus(odds, threshold=1e4).squeeze(1)
    return Truth(rows, logps, jacobian)


def errors(entry: Entry, data: Data, exact: Truth, transform: Transform) -> dict[str, float]:
    """Errors of logps and of the Jacobian, with upstream gradient 1."""
    hidden = data.hidden.detach().requires_grad_()
    out, _ = entry(hidden, data.weight, data.targets, EntropyMode.none, transform)
    if not out.dim():
        raise ValueError("gives the sum over the rows alone")
    torch.autograd.backward(out, torch.ones_like(out))
    assert hidden.grad is not None
    error = out.detach()[exact.rows].double() - exact.logps
    miss = (hidden.grad[exact.rows].double() - exact.jacobian).norm(dim=1)
    size = exact.jacobian.norm(dim=1)
    sure = exact.logps.exp() > 0.999
    with torch.no_grad():
        again, _ = entry(data.hidden, data.weight, data.targets, EntropyMode.none, transform)
    return {
        "logp_max": error.abs().max().item(),
        "logp_mean": error.abs().mean().item(),
        "logp_bias": error.mean().item(),
        "jacobian": (miss.norm() / size.norm()).item(),
        "jacobian_row_median": (miss / size).median().item(),
        "jacobian_sure": (miss[sure].norm() / size[sure].norm()).item() if sure.any() else 0.0,
        "rows_sure": int(sure.sum()),
        "grad_equals_no_grad": float(torch.equal(again, out.detach())),
    }
